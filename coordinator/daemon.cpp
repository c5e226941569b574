#include "coordinator/daemon.h"

#include <deque>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <openssl/rand.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/crash_point.h"
#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "coordinator/http/server.h"
#include "coordinator/publish.h"
#include "coordinator/store.h"
#include "proto/channel.h"

namespace tessera::coordinator {
namespace {

constexpr Millis kTickMs = 50, kSnapshotMs = 200, kLeaveMs = 1500;
constexpr size_t kCurvePoints = 4000;

std::string random_token() {
  unsigned char bytes[24];
  RAND_bytes(bytes, sizeof bytes);
  std::string out;
  for (const unsigned char b : bytes) {
    char pair[3];
    std::snprintf(pair, sizeof pair, "%02x", b);
    out += pair;
  }
  return out;
}

// A name for this run's line of states: random, kept in the store.
std::string new_lineage() { return random_token().substr(0, 16); }

class Coordinator {
 public:
  static Result<std::unique_ptr<Coordinator>> open(Config config, StartMode mode, const std::string& root);
  int run(SignalWatch& signals);

 private:
  Status open_store(StartMode mode);
  Status adopt_root(const std::string& root);
  Status restore();
  Status recover(std::map<std::string, std::string>& meta, const std::string& function_id);
  Status listen();
  void feed(const Event& event);
  void carry_out(const Effect& effect);
  void publish_snapshot(bool force);
  void write_summary();

  Config config_;
  MachineConfig machine_;
  State state_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<proto::Server> server_;
  std::unique_ptr<HttpServer> http_;
  std::mutex commands_mutex_;
  std::deque<HttpServer::Command> commands_;
  Throughput throughput_;
  std::vector<LossPoint> curve_;
  std::optional<Finish> finish_;
  std::optional<Error> failure_;
  double started_at_ = 0;
  uint64_t revision_ = 0;
  Millis next_snapshot_ = 0;
};

Result<std::unique_ptr<Coordinator>> Coordinator::open(Config config, StartMode mode, const std::string& root) {
  auto c = std::make_unique<Coordinator>();
  c->config_ = std::move(config);
  auto& op = c->config_.operation;
  if (op.run_id == "auto") op.run_id = c->config_.source_name.empty() ? "run" : c->config_.source_name;
  if (op.run_dir == "auto") op.run_dir = "runs/" + op.run_id;
  op.run_dir = std::filesystem::absolute(op.run_dir).lexically_normal().string();
  if (const std::string caveat = placement_caveat(c->config_.function); !caveat.empty()) log_warning("{}", caveat);
  c->machine_.function = c->config_.function;
  c->machine_.operation = op;
  c->machine_.run_id = op.run_id;
  c->machine_.run_dir = op.run_dir;
  c->machine_.checkpoint_root = op.run_dir + "/checkpoints";
  TESSERA_TRY(c->open_store(mode));
  if (!root.empty()) TESSERA_TRY(c->adopt_root(root));
  TESSERA_TRY(c->restore());
  TESSERA_TRY(c->listen());
  return c;
}

Status Coordinator::open_store(StartMode mode) {
  const std::string& dir = machine_.run_dir;
  const bool exists = std::filesystem::exists(dir + "/state.db") || std::filesystem::exists(dir + "/checkpoints");
  if (exists && mode == StartMode::kFresh) return fail(ErrorCode::kUsage, "[coordinator] " + dir + " already holds a run; choose another --run-dir, or --resume it");
  if (exists && mode == StartMode::kAuto)
    return fail(ErrorCode::kUsage, "[coordinator] " + dir + " holds an unfinished run; go on with it: tessera-coordinator CONFIG --resume; or start anew: tessera-coordinator CONFIG --fresh --run-dir OTHER");
  if (!exists && mode == StartMode::kResume) return fail(ErrorCode::kUsage, "[coordinator] " + dir + " holds no run to resume; start without --resume");
  const int64_t needed = checkpoint_bytes(machine_.function) * (machine_.operation.checkpoint.keep_last + 1);
  TESSERA_ASSIGN(const int64_t available, free_bytes(dir));
  if (available < needed)
    return fail(ErrorCode::kIo, "[coordinator] " + dir + " has " + human_bytes(available) + " free, " + std::to_string(machine_.operation.checkpoint.keep_last + 1) + " checkpoints of this model need " +
                                    human_bytes(needed) + "; free space, lower operation.checkpoint.keep_last or set operation.run_dir");
  TESSERA_ASSIGN(store_, Store::open(dir));
  return make_folders(machine_.checkpoint_root);
}

// A checkpoint from elsewhere becomes the first state of this run's lineage.
Status Coordinator::adopt_root(const std::string& root) {
  TESSERA_ASSIGN(const Step step, copy_root_checkpoint(root, machine_.function, machine_.checkpoint_root));
  TESSERA_TRY(store_->write_meta("root_step", std::to_string(step)));
  log_info("the run begins with step {} of {}", step, root);
  return {};
}

// The store is new, but the run is not: state.db was lost. What the other files know is written into it again.
Status Coordinator::recover(std::map<std::string, std::string>& meta, const std::string& function_id) {
  TESSERA_ASSIGN(const auto run, recover_run(machine_.run_dir, list_checkpoints(machine_.checkpoint_root), function_id));
  if (!run) return {};
  meta["lineage"] = run->lineage, meta["numerics_class"] = run->numerics_class;
  if (run->root > 0) meta["root_step"] = std::to_string(run->root);
  for (const char* key : {"lineage", "numerics_class", "root_step"})
    if (meta.contains(key)) TESSERA_TRY(store_->write_meta(key, meta[key]));
  TESSERA_TRY(store_->restore_steps(run->lineage, run->steps));
  log_warning("state.db is gone: the ledger of steps {} to {} was read again from metrics.jsonl, the state comes from the newest checkpoint", run->root, run->root + Step(run->steps.size()));
  return {};
}

// What an earlier coordinator of this run knew.
Status Coordinator::restore() {
  TESSERA_ASSIGN(auto meta, store_->read_meta());
  const std::string id = to_hex(function_id(machine_.function));
  if (const auto it = meta.find("function_id"); it != meta.end() && it->second != id)
    return fail(ErrorCode::kFixConfig, "[config] the function part differs from the run's in " + machine_.run_dir + " (function_id " + id + ", the run has " + it->second +
                                           "); a changed function is another run: start it with --fresh, or undo the change");
  if (!meta.contains("lineage") && !meta.contains("root_step")) TESSERA_TRY(recover(meta, id));
  if (!meta.contains("lineage")) meta["lineage"] = new_lineage();
  machine_.lineage = meta["lineage"];
  const uint64_t known_term = meta.contains("term") ? std::strtoull(meta["term"].c_str(), nullptr, 10) : 0;
  TESSERA_ASSIGN(machine_.term, claim_term(machine_.checkpoint_root, known_term));
  crash_point("term.claimed");
  for (const auto& [key, value] : std::map<std::string, std::string>{{"function_id", id}, {"lineage", machine_.lineage}, {"term", std::to_string(machine_.term)}})
    TESSERA_TRY(store_->write_meta(key, value));
  state_.checkpoints = list_checkpoints(machine_.checkpoint_root);
  if (meta.contains("root_step")) state_.root = state_.committed = std::strtoll(meta["root_step"].c_str(), nullptr, 10);
  TESSERA_ASSIGN(const auto ledger, store_->read_ledger(machine_.lineage));
  for (const auto& row : ledger) {
    if (row.step != state_.committed) break;
    state_.ledger[row.step] = row.record;
    state_.batch_chain = chain(state_.batch_chain, row.record.batch);
    state_.last_state_digest = row.record.state;
    ++state_.committed;
  }
  state_.pause_asked = meta.contains("paused") && meta["paused"] == "1";
  if (meta.contains("numerics_class")) state_.numerics_class = meta["numerics_class"];
  if (meta.contains("generations")) state_.generation_count = std::strtoll(meta["generations"].c_str(), nullptr, 10);
  if (meta.contains("manifest_digest")) {
    TESSERA_ASSIGN(const Hash128 digest, hash_from_hex(meta["manifest_digest"]));
    machine_.function.data.manifest_digest = meta["manifest_digest"];
    Dataset dataset;
    dataset.manifest_digest = digest;
    dataset.sample_count = std::strtoll(meta["sample_count"].c_str(), nullptr, 10);
    dataset.decoder_fingerprint = meta["decoder_fingerprint"];
    TESSERA_ASSIGN(state_.length, run_length(machine_.function, dataset.sample_count));
    state_.dataset = dataset;
    state_.run_state = RunState::kStarting;
    state_.reason = "resumed at step " + std::to_string(state_.committed);
  }
  if (meta.contains("world")) {
    if (auto world = parse_world(meta["world"])) adopt_world(state_, std::move(*world), monotonic_ms());
  }
  return {};
}

// Where the run's last coordinator listened; zeros when there was none. Its peers still know it by these ports, and
// `tessera` by this token: a restarted one takes them up again where the configuration leaves the port free.
struct LastAddress {
  int control_port = 0, http_port = 0;
  std::string token;
};
LastAddress last_address(const std::string& run_dir) {
  const auto text = read_file(run_dir + "/address.json");
  const nlohmann::json document = text ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json();
  if (!document.is_object()) return {};
  const auto port = [&](const char* key) {
    const std::string address = document.value(key, "");
    const size_t colon = address.rfind(':');
    return colon == std::string::npos ? 0 : std::atoi(address.c_str() + colon + 1);
  };
  return {port("control"), port("http"), document.value("token", "")};
}

Status Coordinator::listen() {
  const auto& op = machine_.operation;
  const LastAddress last = last_address(machine_.run_dir);
  proto::ChannelOptions channel;
  channel.sender = "coordinator";
  channel.run_id = machine_.run_id;
  auto server = proto::Server::bind(op.control.bind, int(op.control.port == 0 ? last.control_port : op.control.port), channel);
  if (!server && op.control.port == 0 && last.control_port != 0) server = proto::Server::bind(op.control.bind, 0, channel);
  if (!server) return tl::unexpected(server.error());
  server_ = std::make_unique<proto::Server>(std::move(*server));
  const std::string token = last.token.empty() ? random_token() : last.token;
  const auto serve = [&](int64_t port) {
    return HttpServer::start({op.http.bind, int(port), token, machine_.run_dir + "/pictures"}, [this](HttpServer::Command command) {
      {
        std::lock_guard lock(commands_mutex_);
        commands_.push_back(command);
      }
      server_->wake();
    });
  };
  auto http = serve(op.http.port == 0 ? last.http_port : op.http.port);
  if (!http && op.http.port == 0 && last.http_port != 0) http = serve(0);
  if (!http) return tl::unexpected(http.error());
  http_ = std::move(*http);
  const auto reachable = [&](const std::string& bind) { return op.advertise != "auto" ? op.advertise : bind == "0.0.0.0" ? std::string("127.0.0.1") : bind; };
  const nlohmann::ordered_json address{{"schema", 1},
                                       {"run_id", machine_.run_id},
                                       {"control", reachable(op.control.bind) + ":" + std::to_string(server_->port())},
                                       {"http", "http://" + reachable(op.http.bind) + ":" + std::to_string(http_->port())},
                                       {"token", token},
                                       {"pid", getpid()}};
  TESSERA_TRY(write_file_atomic(machine_.run_dir + "/config.yaml", print_resolved(config_)));
  TESSERA_TRY(write_file_atomic(machine_.run_dir + "/address.json", address.dump(1) + "\n", 0600));
  log_info("run {} in {}: control {}, status {}", machine_.run_id, machine_.run_dir, address["control"].get<std::string>(), address["http"].get<std::string>());
  return {};
}

void Coordinator::feed(const Event& event) {
  for (const Effect& effect : step(state_, machine_, event, monotonic_ms())) {
    carry_out(effect);
    if (failure_) return;
  }
}

void Coordinator::carry_out(const Effect& effect) {
  Status done;
  if (const auto* send = std::get_if<Send>(&effect)) {
    (void)server_->send(send->peer, send->payload);  // a peer that is gone is noticed by its silence
  } else if (const auto* stored = std::get_if<StoreStep>(&effect)) {
    done = store_->write_step(stored->done, stored->batch_chain);
    crash_point("step.row_written");
    throughput_.add(stored->done);
    curve_.push_back({stored->done.step, stored->done.loss, stored->done.split.total() > 0 ? double(stored->done.images) / stored->done.split.total() : 0, stored->done.effective_rank, stored->done.lr});
    if (curve_.size() > kCurvePoints) {  // halve, keeping what carries a rank
      std::vector<LossPoint> thinner;
      for (size_t i = 0; i < curve_.size(); ++i)
        if (i % 2 == 0 || curve_[i].effective_rank > 0) thinner.push_back(curve_[i]);
      curve_ = std::move(thinner);
    }
  } else if (const auto* meta = std::get_if<StoreMeta>(&effect)) {
    done = store_->write_meta(meta->key, meta->value);
    if (meta->key == "world") crash_point("world.stored");
  } else if (const auto* publish_effect = std::get_if<PublishCheckpoint>(&effect)) {
    const CheckpointEntry entry = publish(machine_.checkpoint_root, machine_.term, *publish_effect);
    feed(PublishDone{publish_effect->attempt, entry});
  } else if (const auto* remove = std::get_if<RemoveCheckpoint>(&effect)) {
    remove_checkpoint(remove->path);
  } else if (const auto* event = std::get_if<LogEvent>(&effect)) {
    if (event->severity == "error") log_error("{}", event->text);
    else if (event->severity == "warning") log_warning("{}", event->text);
    else log_info("{}", event->text);
    done = store_->write_event(event->severity, event->text);
  } else if (const auto* finish = std::get_if<Finish>(&effect)) {
    finish_ = *finish;
  }
  if (!done && !failure_) failure_ = done.error();
}

void Coordinator::publish_snapshot(bool force) {
  const Millis now = monotonic_ms();
  if (!force && now < next_snapshot_) return;
  next_snapshot_ = now + kSnapshotMs;
  auto snapshot = std::make_shared<Snapshot>();
  const StatusInput in{state_, machine_, throughput_, now, unix_seconds(), started_at_, ++revision_};
  snapshot->status = status_document(in);
  snapshot->checkpoints = checkpoint_list(state_);
  snapshot->events = store_->events();
  snapshot->curve = curve_;
  snapshot->metrics = prometheus_text(in);
  snapshot->ready = state_.generation_count > 0;
  http_->publish(std::move(snapshot));
}

// The last status document, for `tessera status` and `tessera up` after the run.
void Coordinator::write_summary() {
  const StatusInput in{state_, machine_, throughput_, monotonic_ms(), unix_seconds(), started_at_, ++revision_};
  auto document = status_document(in);
  document["checkpoints"] = checkpoint_list(state_)["checkpoints"];
  document["exit_code"] = finish_ ? finish_->exit_code : exit_codes::kBug;
  if (auto done = write_file_atomic(machine_.run_dir + "/status.json", document.dump(1) + "\n"); !done) log_error("{}", done.error().message);
}

int Coordinator::run(SignalWatch& signals) {
  started_at_ = unix_seconds();
  server_->watch(signals.descriptor());
  publish_snapshot(true);
  Millis next_tick = monotonic_ms(), leave_at = -1;
  int signalled = 0;
  for (;;) {
    const Millis now = monotonic_ms();
    if (leave_at >= 0 && (now >= leave_at || (state_.daemons.empty() && state_.loaders.empty()))) break;
    if (auto incoming = server_->receive(int(std::max<Millis>(0, std::min(next_tick - now, kTickMs))))) {
      const auto& e = incoming->envelope;
      if (leave_at >= 0) {
        if (std::holds_alternative<proto::Goodbye>(e.payload)) state_.daemons.erase(e.sender), state_.loaders.erase(e.sender);
      } else {
        feed(MessageEvent{incoming->peer, e.sender, e.incarnation, e.payload});
      }
    }
    if (const int count = signals.count(); count > signalled) {
      signalled = count;
      if (count > 1) return log_warning("second signal: stopping now"), write_summary(), exit_codes::kDrained;
      feed(StopCommand{signals.last() == SIGINT ? "Ctrl-C" : "SIGTERM"});
    }
    std::deque<HttpServer::Command> commands;
    {
      std::lock_guard lock(commands_mutex_);
      commands.swap(commands_);
    }
    for (const auto& command : commands) {
      using Kind = HttpServer::CommandKind;
      if (command.kind == Kind::kStop) feed(StopCommand{"stop asked over HTTP"});
      else if (command.kind == Kind::kCheckpoint) feed(CheckpointCommand{});
      else if (command.kind == Kind::kNote) feed(NoteCommand{command.severity, command.text});
      else feed(PauseCommand{command.kind == Kind::kPause});
    }
    if (monotonic_ms() >= next_tick) {
      next_tick = monotonic_ms() + kTickMs;
      if (leave_at < 0) feed(TickEvent{});
    }
    publish_snapshot(false);
    if (failure_) {
      log_error("{}", failure_->message);
      write_summary();
      return exit_code_of(*failure_);
    }
    if (finish_ && leave_at < 0) {
      leave_at = monotonic_ms() + kLeaveMs;  // peers get their Shutdown
      remove_attempts(machine_.checkpoint_root);
      write_summary();
      publish_snapshot(true);
    }
  }
  return finish_->exit_code;
}

}  // namespace

int64_t checkpoint_bytes(const FunctionConfig& f) {
  const auto network = [](double d, double depth, double hidden) { return depth * (4 * d * d + 2 * d * hidden + 9 * d + hidden) + 2 * d; };
  const double d = double(f.model.embed_dim), p = double(f.predictor.embed_dim), patch = double(f.model.patch_size);
  const double encoder = network(d, double(f.model.depth), double(f.model.hidden_dim())) + d * (3 * patch * patch + 1);
  const double predictor = network(p, double(f.predictor.depth), p * f.predictor.mlp_ratio) + 2 * d * p + d + 2 * p;
  return int64_t(4 * (4 * encoder + 3 * predictor));
}

Result<int> run_coordinator(Config config, StartMode mode, const std::string& root, SignalWatch& signals) {
  TESSERA_ASSIGN(const auto coordinator, Coordinator::open(std::move(config), mode, root));
  return coordinator->run(signals);
}

}  // namespace tessera::coordinator
