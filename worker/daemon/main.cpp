// tessera-worker: the node daemon. Starts one tessera-trainer per device, watches them, drains on SIGTERM.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "proto/channel.h"
#include "worker/daemon/daemon.h"

namespace tessera::worker {
namespace {

Result<std::string> coordinator_address(const std::string& text) {
  if (!text.ends_with(".json")) return text;
  TESSERA_ASSIGN(const std::string content, read_file(text));
  const auto doc = nlohmann::json::parse(content, nullptr, false);
  if (!doc.is_object() || !doc.contains("control") || !doc["control"].is_string()) return fail(ErrorCode::kFixConfig, text + " is no address file of a run (address.json)");
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
  int workers = 0, drain_seconds = 60;
  app.add_option("--coordinator", coordinator, "HOST:PORT, or the run's address.json")->required()->envname("TESSERA_COORDINATOR");
  app.add_option("--name", name, "name of this node; default: the host's");
  app.add_option("--devices", devices, "device of each worker: cpu,cpu or cuda:0,cuda:1")->delimiter(',');
  app.add_option("--workers", workers, "this many CPU workers (instead of --devices)")->check(CLI::Range(1, 1024));
  app.add_option("--advertise", advertise, "address that other hosts reach this one by");
  app.add_option("--drain-seconds", drain_seconds, "after SIGTERM: how long trainers may take to reach a boundary")->check(CLI::Range(0, 86400));
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
  if (::access(trainer.c_str(), X_OK) != 0)
    return std::cerr << "tessera-worker: " << trainer << " cannot be run; give the path of tessera-trainer with --trainer\n", exit_codes::kConfig;
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
  channel.high_water_mark = 256;  // heartbeats that wait while there is no coordinator; older than that they say nothing
  auto client = proto::Client::connect(*address, channel);
  if (!client) return failed(client.error());
  worker::Daemon daemon({name, *address, advertise, log_dir, trainer, devices, Millis{drain_seconds} * 1000}, std::move(*client), signals);
  return daemon.run();
}
