#include "worker/trainer/control.h"

#include <cstdio>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

namespace tessera::trainer {
namespace {

constexpr Millis kHeartbeatMs = 200, kHelloMs = 1000, kResendMs = 1000;
constexpr size_t kUnacknowledgedMax = 100000;  // the oldest are dropped beyond it
constexpr size_t kResendCount = 256;

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
  if (const auto* done = std::get_if<proto::StepDone>(&payload)) {
    keep(*done);
    std::lock_guard lock(mutex_);
    reporting_ = true;
  }
  {
    std::lock_guard lock(mutex_);
    outbox_.push_back(std::move(payload));
  }
  client_.wake();
}

void ControlLink::keep(proto::StepDone done) {
  std::lock_guard lock(mutex_);
  reporting_ = false;
  unacknowledged_.push_back(std::move(done));
  if (unacknowledged_.size() > kUnacknowledgedMax) unacknowledged_.pop_front();
}

void ControlLink::set_acknowledged(Step step) {
  acknowledged_ = std::max(acknowledged_, step);
  while (!unacknowledged_.empty() && unacknowledged_.front().step <= acknowledged_) unacknowledged_.pop_front();
}

void ControlLink::acknowledge(Step step) {
  std::lock_guard lock(mutex_);
  set_acknowledged(step);
}

Step ControlLink::acknowledged() const {
  std::lock_guard lock(mutex_);
  return acknowledged_;
}

void ControlLink::send_kept() {
  {
    std::lock_guard lock(mutex_);
    outbox_.insert(outbox_.end(), unacknowledged_.begin(), unacknowledged_.end());
    reporting_ = true;
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

void ControlLink::report_step_seconds(double seconds_p50, double seconds_max) {
  std::lock_guard lock(mutex_);
  status_.step_seconds_p50 = seconds_p50, status_.step_seconds_max = seconds_max;
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
  refresh_abort();
  return out;
}

// Up while something waits that ends the present world.
void ControlLink::refresh_abort() {
  bool wanted = shutdown_.has_value();
  for (const auto& payload : inbox_) wanted = wanted || std::holds_alternative<proto::WorldStop>(payload) || std::holds_alternative<proto::WorldStart>(payload);
  if (wanted && !abort_.raised()) abort_.raise();
  if (!wanted && abort_.raised()) abort_.clear();
}

void ControlLink::on_assignment(std::function<void(const proto::ShardAssignment&)> sink) {
  std::lock_guard lock(mutex_);
  assignment_sink_ = std::move(sink);
  if (assignment_ && assignment_sink_) assignment_sink_(*assignment_);
}
void ControlLink::on_checkpoint(std::function<void(const proto::Payload&)> sink) {
  std::lock_guard lock(mutex_);
  checkpoint_sink_ = std::move(sink);
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
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return unacknowledged_.empty() && outbox_.empty(); });
}

bool ControlLink::flush(int timeout_ms) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return outbox_.empty(); });
}

void ControlLink::send_hello() {
  proto::TrainerHello hello;
  {
    std::lock_guard lock(mutex_);
    hello = options_.hello;
    hello.highest_term = fence_.highest_term;
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

void ControlLink::send_outbox() {
  for (;;) {
    proto::Payload payload;
    {
      std::lock_guard lock(mutex_);
      if (outbox_.empty()) return changed_.notify_all();
      payload = outbox_.front();
    }
    (void)client_.send(payload);
    std::lock_guard lock(mutex_);
    outbox_.pop_front();
  }
}

// Reports that nobody has acknowledged for a while may have been lost with a connection.
void ControlLink::resend_late(Millis now) {
  std::lock_guard lock(mutex_);
  if (!reporting_ || unacknowledged_.empty() || !outbox_.empty() || now - resent_at_ < kResendMs) return;
  if (resent_at_ != 0)
    for (size_t i = 0; i < std::min(kResendCount, unacknowledged_.size()); ++i) outbox_.push_back(unacknowledged_[i]);
  resent_at_ = now;
}

void ControlLink::run(std::stop_token stop) {
  send_hello();
  Millis next_heartbeat = monotonic_ms() + kHeartbeatMs, next_hello = monotonic_ms() + kHelloMs;
  while (!stop.stop_requested()) {
    send_outbox();
    const Millis now = monotonic_ms();
    if (now >= next_heartbeat && welcomed_) heartbeat(now), next_heartbeat = now + kHeartbeatMs;
    if (now >= next_hello && !welcomed_) send_hello(), next_hello = now + kHelloMs;
    resend_late(now);
    const int wait = int(std::max<Millis>(1, std::min(welcomed_ ? next_heartbeat : next_hello, now + kHeartbeatMs) - now));
    if (auto incoming = client_.receive(wait)) handle(std::move(incoming->envelope.payload));
  }
  send_outbox();
}

void ControlLink::handle(proto::Payload payload) {
  if (std::holds_alternative<proto::Reintroduce>(payload)) return send_hello();
  std::lock_guard lock(mutex_);
  if (const auto* ack = std::get_if<proto::StepDoneAck>(&payload)) {
    set_acknowledged(ack->step);
    resent_at_ = monotonic_ms();
  } else if (auto* assignment = std::get_if<proto::ShardAssignment>(&payload)) {
    assignment_ = std::move(*assignment);
    if (assignment_sink_) assignment_sink_(*assignment_);
  } else if (std::holds_alternative<proto::CheckpointPublished>(payload) || std::holds_alternative<proto::WriteShare>(payload)) {
    if (checkpoint_sink_) checkpoint_sink_(payload);
  } else if (const auto* directive = std::get_if<proto::WorldDirective>(&payload)) {
    if (fence_.admit_directive(directive->generation)) {
      const bool joins = directive_ && directive_->generation == directive->generation;
      const proto::WorldDirective before = joins ? *directive_ : proto::WorldDirective{};
      directive_ = *directive;
      if (joins) directive_->stop_after = std::max(before.stop_after, directive->stop_after), directive_->checkpoint = before.checkpoint || directive->checkpoint;
    }
  } else if (const auto* refused = std::get_if<proto::Refused>(&payload)) {
    shutdown_ = proto::Shutdown{refused->reason, refused->exit_code};
  } else if (const auto* shutdown = std::get_if<proto::Shutdown>(&payload)) {
    shutdown_ = *shutdown;
  } else {
    accept(std::move(payload));
  }
  refresh_abort();
  changed_.notify_all();
}

// Commands for the training thread; those of an older term or a sealed generation are dropped here.
void ControlLink::accept(proto::Payload payload) {
  if (auto* start = std::get_if<proto::WorldStart>(&payload)) {
    if (start->base) {
      if (*start->base != members_of_) return log_info("generation {} is described by its changes to {}, which is not known here; the whole list will come", to_string(start->generation), to_string(*start->base));
      *start = proto::expand(std::move(*start), members_);
    }
    members_of_ = start->generation, members_ = start->members;
  }
  const auto drop = [](const char* what, const Generation& g) { log_info("{} of generation {} came too late; left alone", what, to_string(g)); };
  if (const auto* stop = std::get_if<proto::WorldStop>(&payload); stop && !fence_.admit_stop(stop->generation)) return drop("a WorldStop", stop->generation);
  if (const auto* start = std::get_if<proto::WorldStart>(&payload); start && !fence_.admit_start(start->generation)) return drop("a WorldStart", start->generation);
  if (const auto* welcome = std::get_if<proto::TrainerWelcome>(&payload)) {
    welcomed_ = true;
    client_.set_run_id(welcome->run_id);
    if (reporting_) outbox_.insert(outbox_.end(), unacknowledged_.begin(), unacknowledged_.end());  // a restarted coordinator may not have them
  }
  inbox_.push_back(std::move(payload));
}

}  // namespace tessera::trainer
