#include "worker/daemon/daemon.h"

#include <algorithm>
#include <sys/epoll.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/version.h"

namespace tessera::worker {
namespace {

constexpr Millis kHeartbeatMs = 200, kHelloMs = 1000, kTickMs = 50;
constexpr Millis kDrainMs = 120000;                           // after a signal: from SIGTERM to SIGKILL
constexpr Millis kShutdownTermMs = 3000, kShutdownKillMs = 10000;  // after Shutdown: trainers were told too
constexpr size_t kMostUnsent = 1000;

}  // namespace

Daemon::Daemon(DaemonOptions options, proto::Client client, SignalWatch& signals)
    : boundary_ms_(options.boundary_ms), supervisor_(std::move(options)), client_(std::move(client)), signals_(signals), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  watch(signals.descriptor());
  client_.watch(epoll_);
}

Daemon::~Daemon() { ::close(epoll_); }

int Daemon::run() {
  hello();
  for (;;) {
    const Millis now = monotonic_ms();
    report(supervisor_.tick(now));
    if (leaving_ && left(now)) {
      (void)client_.send(proto::Goodbye{leaving_->reason, leaving_->code});
      return leaving_->code;
    }
    for (const int descriptor : supervisor_.descriptors()) watch(descriptor);
    beat(now);
    if (auto incoming = client_.receive(int(kTickMs))) handle(incoming->envelope.payload);
    on_signals(monotonic_ms());
  }
}

// Already watched descriptors stay so; a closed one leaves the set by itself.
void Daemon::watch(int descriptor) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = descriptor;
  epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &event);
}

void Daemon::hello() {
  next_hello_ = monotonic_ms() + kHelloMs;
  utsname host{};
  uname(&host);
  (void)client_.send(proto::DaemonHello{host.nodename, {kVersion, build_commit(), kProtocolVersion}, ::getpid(), supervisor_.slots()});
}

void Daemon::report(Reports reports) {
  for (auto& fenced : reports.fenced) unsent_.push_back(std::move(fenced));
  for (auto& exited : reports.exited) unsent_.push_back(std::move(exited));
  while (!unsent_.empty() && client_.send(unsent_.front())) unsent_.pop_front();
  while (unsent_.size() > kMostUnsent) unsent_.pop_front();
}

void Daemon::beat(Millis now) {
  if (!welcomed_ && now >= next_hello_) hello();
  if (!welcomed_ || now < next_heartbeat_) return;
  next_heartbeat_ = now + kHeartbeatMs;
  (void)client_.send(proto::DaemonStatus{supervisor_.running()});
}

void Daemon::on_signals(Millis now) {
  const int count = signals_.count();
  if (count == std::exchange(signals_seen_, count)) return;
  const std::string name = signals_.last() == SIGINT ? "SIGINT" : "SIGTERM";
  if (leaving_ || !welcomed_) {
    leave(name, exit_codes::kDrained, 0, kDrainMs);
    leaving_->term_at = std::min(leaving_->term_at, now);
  } else {
    (void)client_.send(proto::Goodbye{name, exit_codes::kDrained});
    leave(name, exit_codes::kDrained, boundary_ms_, kDrainMs);
  }
  if (count < 2) return;
  log_warning("second signal: killing the trainers");
  leaving_->kill_at = now;
}

void Daemon::leave(const std::string& reason, int code, Millis term_ms, Millis kill_ms) {
  if (leaving_) return;
  log_info("leaving: {}", reason);
  const Millis now = monotonic_ms();
  leaving_ = Leaving{reason, code, now + term_ms, now + kill_ms, false};
  supervisor_.retire();
}

bool Daemon::left(Millis now) {
  if (supervisor_.running().empty()) return true;
  if (now >= leaving_->term_at && !std::exchange(leaving_->termed, true)) supervisor_.signal_all(SIGTERM);
  if (now >= leaving_->kill_at) supervisor_.signal_all(SIGKILL);
  return false;
}

void Daemon::handle(const proto::Payload& payload) {
  if (const auto* welcome = std::get_if<proto::DaemonWelcome>(&payload)) {
    on_welcome(*welcome);
  } else if (std::holds_alternative<proto::Reintroduce>(payload)) {
    hello();
  } else if (const auto* fence = std::get_if<proto::FenceTrainer>(&payload)) {
    log_warning("fencing trainer {}: {}", fence->worker_id, fence->reason);
    supervisor_.fence(fence->worker_id, fence->incarnation);
  } else if (const auto* shutdown = std::get_if<proto::Shutdown>(&payload)) {
    leave(shutdown->reason, shutdown->exit_code, kShutdownTermMs, kShutdownKillMs);
  } else if (const auto* refused = std::get_if<proto::Refused>(&payload)) {
    log_error("the coordinator refused this node: {}", refused->reason);
    leave("refused: " + refused->reason, refused->exit_code ? refused->exit_code : exit_codes::kRefused, 0, 0);
  }
}

void Daemon::on_welcome(const proto::DaemonWelcome& welcome) {
  welcomed_ = true;
  client_.set_run_id(welcome.run_id);
  if (supervisor_.started()) return;  // a restarted coordinator: the trainers run on
  auto operation = parse_operation(welcome.operation_yaml);
  if (operation) return supervisor_.set_operation(*operation, welcome.function_yaml);
  log_error("the coordinator's configuration cannot be read: {}", operation.error().message);
  leave(operation.error().message, exit_code_of(operation.error()), 0, 0);
}

}  // namespace tessera::worker
