// tessera status | events | logs
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <poll.h>

#include "common/process.h"
#include "ops/cli/commands.h"
#include "ops/cli/http_client.h"
#include "ops/cli/progress.h"
#include "ops/cli/run_folder.h"
#include "ops/cli/summary.h"

namespace tessera::cli {
namespace {

// Sleeps; true when a signal arrived.
bool interrupted(SignalWatch& signals, int timeout_ms) {
  pollfd wait{signals.descriptor(), POLLIN, 0};
  poll(&wait, 1, timeout_ms);
  return signals.count() > 0;
}

bool is_over(const Json& status) {
  const std::string state = text_at(status, "/run/state");
  return state == "SUCCEEDED" || state == "FAILED" || state == "CANCELLED";
}

// The live document, or the one that the coordinator left behind.
Result<Json> status_of(const RunReference& run) {
  if (!run.url.empty()) {
    auto live = get_json(run.url + "/api/v1/status");
    if (live || run.run_dir.empty()) return live;
  }
  if (auto last = read_last_status(run.run_dir)) {
    (*last)["live"] = false;
    return *last;
  }
  return fail(ErrorCode::kUnavailable, "the coordinator of " + run.run_dir + (run.url.empty() ? " never started" : " does not answer at " + run.url) +
                                           " and left no last status; go on with the run: tessera up CONFIG --resume");
}

void print_status(const Json& status, Format format) {
  if (format == Format::kJson) {
    std::printf("%s\n", status.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    if (status.contains("live")) std::printf("(no coordinator answers; this is how the run ended)\n");
    std::printf("%s", status_page(status).c_str());
  }
  std::fflush(stdout);
}

// Events after `last`, which is raised. From the coordinator, else from the folder.
Result<std::vector<Json>> events_after(const RunReference& run, int64_t& last) {
  std::vector<Json> out;
  const auto take = [&](const Json& event) {
    const auto id = int64_t(number_at(event, "/id"));
    if (id <= last) return;
    out.push_back(event);
  };
  Result<Json> live = fail(ErrorCode::kUnavailable, "the run has no coordinator");
  if (!run.url.empty()) live = get_json(run.url + "/api/v1/events?after=" + std::to_string(last));
  if (live && live->contains("events")) {
    for (const Json& event : (*live)["events"]) take(event);
  } else if (!run.run_dir.empty()) {
    for (const Json& event : read_json_lines(run.run_dir + "/events.jsonl")) out.push_back(event);
  } else {
    return tl::unexpected<Error>(live.error());
  }
  for (const Json& event : out) last = std::max(last, int64_t(number_at(event, "/id")));
  return out;
}

void print_line(const Json& row, const std::string& text, Format format) {
  std::printf("%s\n", format == Format::kJson ? row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str() : text.c_str());
  std::fflush(stdout);
}

std::string log_line(const Json& row) {
  std::string who = text_at(row, "/role", "?");
  if (const std::string name = text_at(row, "/worker"); !name.empty()) who += " " + name;
  if (const double rank = number_at(row, "/rank", -1); rank >= 0) who += " rank " + std::to_string(int64_t(rank));
  if (const double step = number_at(row, "/step", -1); step >= 0) who += " step " + std::to_string(int64_t(step));
  return clock_time(number_at(row, "/time")) + " " + text_at(row, "/level", "info") + " " + who + ": " + text_at(row, "/message");
}

// All log lines of the run, by time.
std::vector<Json> read_logs(const std::string& run_dir, const std::string& role) {
  std::vector<Json> rows;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(run_dir + "/logs", error)) {
    if (entry.path().extension() != ".jsonl") continue;
    for (Json& row : read_json_lines(entry.path().string()))
      if (role.empty() || text_at(row, "/role") == role) rows.push_back(std::move(row));
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Json& a, const Json& b) { return number_at(a, "/time") < number_at(b, "/time"); });
  return rows;
}

}  // namespace

int status_command(const std::string& run, Watching watching, Format format) {
  SignalWatch signals;
  const auto reference = find_run(run);
  if (!reference) return report(reference.error(), format);
  for (;;) {
    const auto status = status_of(*reference);
    if (!status) return report(status.error(), format);
    print_status(*status, format);
    if (watching == Watching::kOnce || is_over(*status) || status->contains("live")) return exit_codes::kDone;
    if (interrupted(signals, 1000)) return exit_codes::kDone;
  }
}

int events_command(const std::string& run, Watching watching, Format format) {
  SignalWatch signals;
  const auto reference = find_run(run);
  if (!reference) return report(reference.error(), format);
  int64_t last = 0;
  for (size_t printed = 0;;) {
    const auto events = events_after(*reference, last);
    if (!events) return printed > 0 ? exit_codes::kDone : report(events.error(), format);
    for (const Json& event : *events) print_line(event, event_line(event), format), ++printed;
    if (watching == Watching::kOnce) return exit_codes::kDone;
    if (const auto status = status_of(*reference); !status || status->contains("live") || is_over(*status)) return exit_codes::kDone;
    if (interrupted(signals, 1000)) return exit_codes::kDone;
  }
}

int logs_command(const std::string& run, const std::string& role, int64_t count, Watching watching, Format format) {
  SignalWatch signals;
  const auto reference = find_run(run);
  if (!reference) return report(reference.error(), format);
  if (reference->run_dir.empty())
    return report(Error{ErrorCode::kUsage, "logs lie in the run's folder on the head node (logs/*.jsonl); name the folder instead of " + reference->url}, format);
  size_t printed = 0;
  for (bool first = true;; first = false) {
    const std::vector<Json> rows = read_logs(reference->run_dir, role);
    if (first && rows.empty()) return report(Error{ErrorCode::kUsage, "there is no log line" + (role.empty() ? "" : " of role " + role) + " in " + reference->run_dir + "/logs"}, format);
    if (first && int64_t(rows.size()) > count) printed = rows.size() - size_t(count);
    for (; printed < rows.size(); ++printed) print_line(rows[printed], log_line(rows[printed]), format);
    if (watching == Watching::kOnce) return exit_codes::kDone;
    if (const auto status = status_of(*reference); !status || status->contains("live")) return exit_codes::kDone;
    if (interrupted(signals, 1000)) return exit_codes::kDone;
  }
}

}  // namespace tessera::cli
