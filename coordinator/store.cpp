#include "coordinator/store.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sqlite3.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/crash_point.h"
#include "common/file.h"

namespace tessera::coordinator {
namespace {

constexpr size_t kEventsKept = 500;

// A prepared statement, finalised at the end of its scope.
class Statement {
 public:
  Statement(sqlite3* db, const char* sql) : db_(db) { ok_ = sqlite3_prepare_v2(db, sql, -1, &statement_, nullptr) == SQLITE_OK; }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  void bind(int at, int64_t value) { sqlite3_bind_int64(statement_, at, value); }
  void bind(int at, double value) { sqlite3_bind_double(statement_, at, value); }
  void bind(int at, const std::string& value) { sqlite3_bind_text(statement_, at, value.c_str(), int(value.size()), SQLITE_TRANSIENT); }
  int next() { return ok_ ? sqlite3_step(statement_) : SQLITE_ERROR; }
  int64_t integer(int column) { return sqlite3_column_int64(statement_, column); }
  std::string text(int column) {
    const auto* value = sqlite3_column_text(statement_, column);
    return value ? reinterpret_cast<const char*>(value) : "";
  }

 private:
  sqlite3* db_;
  sqlite3_stmt* statement_ = nullptr;
  bool ok_ = false;
};

tl::unexpected<Error> damaged(const std::string& path, sqlite3* db) {
  const std::string why = db ? sqlite3_errmsg(db) : "unknown";
  if (db && (sqlite3_errcode(db) == SQLITE_FULL || sqlite3_errcode(db) == SQLITE_IOERR)) return fail(ErrorCode::kIo, "[store] cannot write " + path + ": " + why);
  return fail(ErrorCode::kFixData, "[store] " + path + " is damaged or not readable (" + why + "); move it away and start with --resume: the checkpoints are the truth, the run goes on from the newest");
}

Status append(int fd, const std::string& path, const std::string& line) {
  for (size_t done = 0; done < line.size();) {
    const ssize_t put = ::write(fd, line.data() + done, line.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail(ErrorCode::kIo, "[store] cannot write " + path + ": " + std::strerror(errno));
    done += size_t(put);
  }
  return {};
}

nlohmann::ordered_json metrics_line(const proto::StepDone& d, const Hash128& batch_chain) {
  const double seconds = d.split.total();
  return {{"schema", 1},
          {"step", d.step},
          {"time", d.unix_time},
          {"loss", d.loss},
          {"lr", d.lr},
          {"weight_decay", d.weight_decay},
          {"ema", d.ema},
          {"gradient_norm", d.gradient_norm},
          {"skipped", d.skipped},
          {"context_length", d.context_length},
          {"effective_rank", d.effective_rank > 0 ? nlohmann::ordered_json(d.effective_rank) : nlohmann::ordered_json(nullptr)},
          {"images_per_second", seconds > 0 ? double(d.images) / seconds : 0.0},
          {"seconds", {{"data", d.split.data}, {"compute", d.split.compute}, {"communication", d.split.communication}, {"checkpoint", d.split.checkpoint}, {"total", seconds}}},
          {"generation", to_string(d.generation)},
          {"batch_digest", to_hex(d.batch_digest)},
          {"state_digest", to_hex(d.state_digest)},
          {"gradient_digest", to_hex(d.gradient_digest)},
          {"batch_chain", to_hex(batch_chain)}};
}

}  // namespace

Result<std::unique_ptr<Store>> Store::open(const std::string& run_dir) {
  if (const std::string network = network_file_system(run_dir); !network.empty())
    return fail(ErrorCode::kFixConfig, "[store] " + run_dir + " lies on " + network + ", where SQLite's locks cannot be trusted; set operation.run_dir to a local disk of the head node");
  TESSERA_TRY(make_folders(run_dir));
  std::unique_ptr<Store> store(new Store());
  store->run_dir_ = run_dir;
  TESSERA_TRY(store->lock());
  const std::string path = run_dir + "/state.db";
  if (sqlite3_open_v2(path.c_str(), &store->db_, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr) != SQLITE_OK) return damaged(path, store->db_);
  sqlite3_busy_timeout(store->db_, 2000);
  for (const char* sql : {"PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL)",
                          "CREATE TABLE IF NOT EXISTS steps(lineage TEXT NOT NULL, step INTEGER NOT NULL, generation TEXT, loss REAL, batch_digest TEXT NOT NULL, "
                          "state_digest TEXT NOT NULL, gradient_digest TEXT NOT NULL, skipped INTEGER, PRIMARY KEY(lineage, step)) WITHOUT ROWID"})
    if (auto done = store->execute(sql); !done) return damaged(path, store->db_);
  Statement check(store->db_, "PRAGMA quick_check");
  if (check.next() != SQLITE_ROW || check.text(0) != "ok") return damaged(path, store->db_);
  store->metrics_fd_ = ::open((run_dir + "/metrics.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  store->events_fd_ = ::open((run_dir + "/events.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (store->metrics_fd_ < 0 || store->events_fd_ < 0) return fail(ErrorCode::kIo, "[store] cannot write to " + run_dir + ": " + std::strerror(errno));
  return store;
}

Store::~Store() {
  if (db_) sqlite3_close(db_);
  if (metrics_fd_ >= 0) ::close(metrics_fd_);
  if (events_fd_ >= 0) ::close(events_fd_);
  if (lock_fd_ >= 0) ::close(lock_fd_);
}

// Held until the process ends, however it ends.
Status Store::lock() {
  const std::string path = run_dir_ + "/.lock";
  lock_fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_fd_ < 0) return fail(ErrorCode::kIo, "[store] cannot write " + path + ": " + std::strerror(errno));
  if (::flock(lock_fd_, LOCK_EX | LOCK_NB) != 0) {
    const auto pid = read_file(path);
    return fail(ErrorCode::kUsage, "[store] " + run_dir_ + " is in use by another coordinator (pid " + (pid && !pid->empty() ? *pid : "unknown") + "); watch it with tessera status, or stop it first");
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock_fd_, 0) != 0 || ::write(lock_fd_, pid.data(), pid.size()) != ssize_t(pid.size())) return fail(ErrorCode::kIo, "[store] cannot write " + path + ": " + std::strerror(errno));
  return {};
}

Status Store::execute(const std::string& sql) {
  char* message = nullptr;
  if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, &message) == SQLITE_OK) return {};
  sqlite3_free(message);
  return damaged(run_dir_ + "/state.db", db_);
}

Result<std::map<std::string, std::string>> Store::read_meta() {
  std::map<std::string, std::string> out;
  Statement rows(db_, "SELECT key, value FROM meta");
  int code;
  while ((code = rows.next()) == SQLITE_ROW) out[rows.text(0)] = rows.text(1);
  if (code != SQLITE_DONE) return damaged(run_dir_ + "/state.db", db_);
  return out;
}

Status Store::write_meta(const std::string& key, const std::string& value) {
  Statement row(db_, "INSERT INTO meta(key, value) VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2");
  row.bind(1, key);
  row.bind(2, value);
  if (row.next() != SQLITE_DONE) return damaged(run_dir_ + "/state.db", db_);
  return {};
}

// The line first: killed between the two, the step is reported again and the line written twice, with equal digests. The
// other way round it would be missing for ever.
Status Store::write_step(const proto::StepDone& d, const Hash128& batch_chain) {
  TESSERA_TRY(append(metrics_fd_, run_dir_ + "/metrics.jsonl", metrics_line(d, batch_chain).dump() + "\n"));
  crash_point("step.line_written");
  return insert_step(d.lineage, {d.step, d.batch_digest, d.state_digest, d.gradient_digest, d.loss, d.skipped, to_string(d.generation)});
}

Status Store::insert_step(const std::string& lineage, const RecoveredStep& step) {
  Statement row(db_, "INSERT OR IGNORE INTO steps VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
  row.bind(1, lineage);
  row.bind(2, step.step);
  row.bind(3, step.generation);
  row.bind(4, step.loss);
  row.bind(5, to_hex(step.batch));
  row.bind(6, to_hex(step.state));
  row.bind(7, to_hex(step.gradient));
  row.bind(8, int64_t{step.skipped});
  if (row.next() != SQLITE_DONE) return damaged(run_dir_ + "/state.db", db_);
  return {};
}

Status Store::restore_steps(const std::string& lineage, const std::vector<RecoveredStep>& steps) {
  TESSERA_TRY(execute("BEGIN"));
  for (const RecoveredStep& step : steps) TESSERA_TRY(insert_step(lineage, step));
  return execute("COMMIT");
}

Result<std::vector<Store::LedgerRow>> Store::read_ledger(const std::string& lineage) {
  std::vector<LedgerRow> out;
  Statement rows(db_, "SELECT step, batch_digest, state_digest FROM steps WHERE lineage = ?1 ORDER BY step");
  rows.bind(1, lineage);
  int code;
  while ((code = rows.next()) == SQLITE_ROW) {
    TESSERA_ASSIGN(const StateDigest batch, state_digest_from_hex(rows.text(1)));
    TESSERA_ASSIGN(const StateDigest state, state_digest_from_hex(rows.text(2)));
    out.push_back({rows.integer(0), {batch, state}});
  }
  if (code != SQLITE_DONE) return damaged(run_dir_ + "/state.db", db_);
  return out;
}

Status Store::write_event(const std::string& severity, const std::string& text) {
  events_.push_back({next_event_++, unix_seconds(), severity, text});
  if (events_.size() > kEventsKept) events_.erase(events_.begin());
  const nlohmann::ordered_json line{{"schema", 1}, {"id", events_.back().id}, {"time", events_.back().unix_time}, {"severity", severity}, {"text", text}};
  return append(events_fd_, run_dir_ + "/events.jsonl", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace tessera::coordinator
