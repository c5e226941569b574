// tessera-worker: the node daemon. Starts one tessera-trainer per device, watches them, drains on SIGTERM.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "proto/channel.h"
#include "worker/daemon/supervisor.h"

namespace tessera::worker {
namespace {

constexpr Millis kHeartbeatMs = 200, kHelloMs = 1000, kTickMs = 20, kGraceMs = 10000, kStopMs = 120000;

class Daemon {
 public:
  Daemon(DaemonOptions options, proto::Client client, SignalWatch& signals)
      : supervisor_(options), options_(std::move(options)), client_(std::move(client)), signals_(signals), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    watch(signals.descriptor());
    client_.watch(epoll_);
  }
  ~Daemon() { ::close(epoll_); }

  int run() {
    hello();
    for (;;) {
      const Millis now = monotonic_ms();
      for (auto& exited : supervisor_.tick(now)) (void)client_.send(exited);
      for (const int descriptor : supervisor_.descriptors()) watch(descriptor);
      if (now >= next_heartbeat_) {
        next_heartbeat_ = now + kHeartbeatMs;
        if (welcomed_) (void)client_.send(proto::DaemonStatus{supervisor_.running()});
      }
      if (!welcomed_ && now >= next_hello_) hello();
      if (const int count = signals_.count(); count > 0) {
        if (count > 1 || (draining_since_ >= 0 && now - draining_since_ > kStopMs)) return leave(0, "second signal", exit_codes::kDrained);
        if (draining_since_ < 0) {
          // A drained node leaves the world: its trainers end, the others go on in the next generation.
          draining_since_ = now;
          return leave(kGraceMs, "SIGTERM", exit_codes::kDrained);
        }
      }
      if (auto incoming = client_.receive(int(kTickMs)))
        if (auto code = handle(incoming->envelope.payload)) return *code;
    }
  }

 private:
  void watch(int descriptor) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLONESHOT;
    event.data.fd = descriptor;
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &event) != 0) epoll_ctl(epoll_, EPOLL_CTL_MOD, descriptor, &event);
  }
  void hello() {
    next_hello_ = monotonic_ms() + kHelloMs;
    utsname host{};
    uname(&host);
    (void)client_.send(proto::DaemonHello{host.nodename, {kVersion, build_commit(), kProtocolVersion}, ::getpid(), supervisor_.slots()});
  }
  int leave(Millis grace_ms, const std::string& reason, int code) {
    log_info("leaving: {}", reason);
    supervisor_.stop(grace_ms);
    for (auto& exited : supervisor_.tick(monotonic_ms())) (void)client_.send(exited);
    (void)client_.send(proto::Goodbye{reason, code});
    return code;
  }
  std::optional<int> handle(const proto::Payload& payload) {
    if (const auto* welcome = std::get_if<proto::DaemonWelcome>(&payload)) {
      welcomed_ = true;
      client_.set_run_id(welcome->run_id);
      if (supervisor_.started()) return std::nullopt;  // a restarted coordinator: the trainers run on
      auto operation = parse_operation(welcome->operation_yaml);
      if (!operation) return log_error("{}", operation.error().message), exit_code_of(operation.error());
      supervisor_.set_operation(*operation);
    } else if (std::holds_alternative<proto::Reintroduce>(payload)) {
      hello();
    } else if (const auto* fence = std::get_if<proto::FenceTrainer>(&payload)) {
      log_warning("fencing trainer {}: {}", fence->worker_id, fence->reason);
      supervisor_.fence(fence->worker_id);
      (void)client_.send(proto::TrainerFenced{fence->worker_id, fence->incarnation});
    } else if (const auto* shutdown = std::get_if<proto::Shutdown>(&payload)) {
      return leave(kGraceMs, shutdown->reason, shutdown->exit_code);
    } else if (const auto* refused = std::get_if<proto::Refused>(&payload)) {
      log_error("the coordinator refused this node: {}", refused->reason);
      supervisor_.stop(0);
      return refused->exit_code ? refused->exit_code : exit_codes::kRefused;
    }
    return std::nullopt;
  }

  Supervisor supervisor_;
  DaemonOptions options_;
  proto::Client client_;
  SignalWatch& signals_;
  int epoll_;
  bool welcomed_ = false;
  Millis next_heartbeat_ = 0, next_hello_ = 0, draining_since_ = -1;
};

Result<std::string> coordinator_address(const std::string& text) {
  if (!text.ends_with(".json")) return text;
  TESSERA_ASSIGN(const std::string content, read_file(text));
  const auto doc = nlohmann::json::parse(content, nullptr, false);
  if (!doc.is_object() || !doc.contains("control")) return fail(ErrorCode::kFixConfig, text + " is no address file of a run (address.json)");
  return doc["control"].get<std::string>();
}

}  // namespace
}  // namespace tessera::worker

int main(int argc, char** argv) {
  using namespace tessera;
  SignalWatch signals;
  CLI::App app{"Node daemon of Tessera: starts and watches one trainer per device"};
  std::string coordinator, name, log_dir, advertise = "127.0.0.1", trainer = executable_folder() + "/tessera-trainer";
  std::vector<std::string> devices;
  int workers = 0;
  app.add_option("--coordinator", coordinator, "HOST:PORT, or the run's address.json")->required()->envname("TESSERA_COORDINATOR");
  app.add_option("--name", name, "name of this node; default: the host's");
  app.add_option("--devices", devices, "device of each worker: cpu,cpu or cuda:0,cuda:1")->delimiter(',');
  app.add_option("--workers", workers, "this many CPU workers (instead of --devices)")->check(CLI::Range(1, 1024));
  app.add_option("--advertise", advertise, "address that other hosts reach this one by");
  app.add_option("--log-dir", log_dir, "folder for JSON logs");
  app.add_option("--trainer", trainer, "path of tessera-trainer")->envname("TESSERA_TRAINER");
  app.set_version_flag("--version", std::string(kVersion) + " " + build_commit());
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  if (workers > 0 && !devices.empty()) return std::cerr << "tessera-worker: give --workers or --devices, not both\n", exit_codes::kUsage;
  if (devices.empty()) devices.assign(size_t(std::max(1, workers)), "cpu");
  if (name.empty()) {
    utsname host{};
    uname(&host);
    name = host.nodename;
  }
  const auto failed = [](const Error& error) { return std::cerr << "tessera-worker: " << error.message << "\n", exit_code_of(error); };
  if (auto status = log_init({"worker", name, log_dir.empty() ? "" : log_dir + "/worker-" + name + ".jsonl"}); !status) return failed(status.error());
  auto address = worker::coordinator_address(coordinator);
  if (!address) return failed(address.error());
  proto::ChannelOptions channel;
  channel.sender = "daemon:" + name;
  auto client = proto::Client::connect(*address, channel);
  if (!client) return failed(client.error());
  worker::Daemon daemon({name, *address, advertise, log_dir, trainer, devices}, std::move(*client), signals);
  return daemon.run();
}
