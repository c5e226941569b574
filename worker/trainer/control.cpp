#include "worker/trainer/control.h"

#include <cstdio>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

namespace tessera::trainer {
namespace {

constexpr Millis kHeartbeatMs = 200, kHelloMs = 1000;
constexpr size_t kUnacknowledgedMax = 100000;

int64_t resident_bytes() {
  long pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return int64_t(resident) * sysconf(_SC_PAGESIZE);
}

}  // namespace

Result<std::unique_ptr<ControlLink>> ControlLink::start(Options options, collective::AbortSignal& abort) {
  proto::ChannelOptions channel;
  channel.sender = options.hello.worker_id;
  TESSERA_ASSIGN(proto::Client client, proto::Client::connect(options.coordinator, channel));
  std::unique_ptr<ControlLink> link(new ControlLink(std::move(options), abort, std::move(client)));
  link->thread_ = std::jthread([raw = link.get()](std::stop_token stop) { raw->run(stop); });
  return link;
}

ControlLink::ControlLink(Options options, collective::AbortSignal& abort, proto::Client client)
    : options_(std::move(options)), abort_(abort), client_(std::move(client)), phase_since_(monotonic_ms()) {}

ControlLink::~ControlLink() {
  thread_.request_stop();
  client_.wake();
}

void ControlLink::send(proto::Payload payload) {
  {
    std::lock_guard lock(mutex_);
    if (const auto* done = std::get_if<proto::StepDone>(&payload)) {
      unacknowledged_.push_back(*done);
      if (unacknowledged_.size() > kUnacknowledgedMax) unacknowledged_.pop_front();
    }
    outbox_.push_back(std::move(payload));
  }
  client_.wake();
}

void ControlLink::report(Generation generation, Rank rank, Step step, proto::Phase phase) {
  log_context().rank = rank;
  log_context().step = step;
  std::lock_guard lock(mutex_);
  if (status_.phase != phase || status_.step != step || status_.generation != generation) phase_since_ = monotonic_ms();
  status_.generation = generation;
  status_.rank = rank;
  status_.step = step;
  status_.phase = phase;
}

void ControlLink::report_step_seconds(double seconds_p50) {
  std::lock_guard lock(mutex_);
  status_.step_seconds_p50 = seconds_p50;
}

void ControlLink::set_position(Generation generation, Step applied) {
  std::lock_guard lock(mutex_);
  options_.hello.generation = generation;
  options_.hello.applied = applied;
}

std::optional<proto::Payload> ControlLink::next(int timeout_ms) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return !inbox_.empty() || shutdown_; });
  if (inbox_.empty()) return std::nullopt;
  proto::Payload out = std::move(inbox_.front());
  inbox_.pop_front();
  return out;
}

std::optional<proto::ShardAssignment> ControlLink::take_assignment() {
  std::lock_guard lock(mutex_);
  return std::exchange(assignment_, std::nullopt);
}
std::optional<proto::WorldDirective> ControlLink::take_directive() {
  std::lock_guard lock(mutex_);
  return std::exchange(directive_, std::nullopt);
}
std::optional<proto::Shutdown> ControlLink::shutdown() const {
  std::lock_guard lock(mutex_);
  return shutdown_;
}

bool ControlLink::drain(int timeout_ms) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return (unacknowledged_.empty() && outbox_.empty()) || shutdown_; });
}

void ControlLink::send_hello() {
  proto::TrainerHello hello;
  {
    std::lock_guard lock(mutex_);
    hello = options_.hello;
  }
  (void)client_.send(hello);
}

void ControlLink::heartbeat(Millis now) {
  proto::TrainerStatus status;
  {
    std::lock_guard lock(mutex_);
    status = status_;
    status.phase_seconds = double(now - phase_since_) / 1000.0;
  }
  status.memory_bytes = resident_bytes();
  (void)client_.send(status);
}

void ControlLink::run(std::stop_token stop) {
  send_hello();
  Millis next_heartbeat = monotonic_ms() + kHeartbeatMs, next_hello = monotonic_ms() + kHelloMs;
  while (!stop.stop_requested()) {
    for (;;) {
      proto::Payload payload;
      {
        std::lock_guard lock(mutex_);
        if (outbox_.empty()) break;
        payload = std::move(outbox_.front());
        outbox_.pop_front();
        if (outbox_.empty()) changed_.notify_all();
      }
      (void)client_.send(payload);
    }
    const Millis now = monotonic_ms();
    if (now >= next_heartbeat && welcomed_) heartbeat(now), next_heartbeat = now + kHeartbeatMs;
    if (now >= next_hello && !welcomed_) send_hello(), next_hello = now + kHelloMs;
    const int wait = int(std::max<Millis>(1, std::min(welcomed_ ? next_heartbeat : next_hello, now + kHeartbeatMs) - now));
    if (auto incoming = client_.receive(wait)) handle(std::move(incoming->envelope.payload));
  }
  std::lock_guard lock(mutex_);
  for (auto& payload : outbox_) (void)client_.send(payload);
}

void ControlLink::handle(proto::Payload payload) {
  if (std::holds_alternative<proto::Reintroduce>(payload)) {
    send_hello();
    return;
  }
  std::lock_guard lock(mutex_);
  if (const auto* ack = std::get_if<proto::StepDoneAck>(&payload)) {
    while (!unacknowledged_.empty() && unacknowledged_.front().step <= ack->step) unacknowledged_.pop_front();
  } else if (auto* assignment = std::get_if<proto::ShardAssignment>(&payload)) {
    assignment_ = std::move(*assignment);
  } else if (auto* directive = std::get_if<proto::WorldDirective>(&payload)) {
    directive_ = *directive;
  } else if (auto* refused = std::get_if<proto::Refused>(&payload)) {
    shutdown_ = proto::Shutdown{refused->reason, refused->exit_code};
    abort_.raise();
  } else if (auto* shutdown = std::get_if<proto::Shutdown>(&payload)) {
    shutdown_ = *shutdown;
    abort_.raise();
  } else {
    if (std::holds_alternative<proto::WorldStop>(payload)) abort_.raise();
    if (auto* welcome = std::get_if<proto::TrainerWelcome>(&payload)) {
      welcomed_ = true;
      client_.set_run_id(welcome->run_id);
      for (const auto& done : unacknowledged_) outbox_.push_back(done);  // a restarted coordinator may not have them
    }
    inbox_.push_back(std::move(payload));
  }
  changed_.notify_all();
}

}  // namespace tessera::trainer
