// tessera doctor | version
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sys/resource.h>
#include <thread>
#include <unistd.h>

#include "common/file.h"
#include "common/version.h"
#include "ops/cli/commands.h"
#include "ops/cli/helpers.h"
#include "ops/cli/preflight.h"

namespace tessera::cli {
namespace {

struct Finding {
  std::string check;
  std::string state;  // ok | warning | problem
  std::string text;
};

Finding programs() {
  std::string missing;
  for (const char* name : {"tessera-coordinator", "tessera-worker", "tessera-trainer", "tessera-loader", "tessera-data", "tessera-model"})
    if (!helper_path(name)) missing += (missing.empty() ? "" : ", ") + std::string(name);
  if (missing.empty()) return {"programs", "ok", "all are beside tessera in " + executable_folder()};
  return {"programs", "problem", "missing in " + executable_folder() + ": " + missing + "; build them: cmake --build --preset release"};
}

// A trainer that cannot find its LibTorch does not even print its help.
Finding trainer_starts() {
  const auto path = helper_path("tessera-trainer");
  if (!path) return {"libtorch", "problem", "tessera-trainer is not built"};
  SpawnOptions options;
  options.command = {*path, "--help"};
  options.output_file = "/dev/null";
  auto child = Child::spawn(options);
  if (!child) return {"libtorch", "problem", child.error().message};
  ChildExit exit;
  for (int waited = 0; waited < 200 && !child->poll_exit(&exit); ++waited) ::usleep(50000);
  if (exit.exit_code == 0) return {"libtorch", "ok", std::string("tessera-trainer starts with LibTorch ") + kLibtorchVersion};
  return {"libtorch", "problem", "tessera-trainer does not start (" + (exit.cause.empty() ? "no end within 10 s" : exit.cause) + "); run ops/setup and build again"};
}

Finding memory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t value = 0;
  while (file >> key >> value >> unit)
    if (key == "MemAvailable:") return {"memory", value > (2 << 20) ? "ok" : "warning", human_bytes(value * 1024) + " available"};
  return {"memory", "warning", "/proc/meminfo has no MemAvailable"};
}

Finding disk() {
  const auto bytes = free_bytes("runs");
  if (!bytes) return {"disk", "problem", bytes.error().message};
  const std::string network = network_file_system("runs");
  if (!network.empty()) return {"disk", "problem", "runs/ lies on " + network + ", where the coordinator's database cannot be trusted; set operation.run_dir to a local disk"};
  return {"disk", *bytes > (int64_t{1} << 30) ? "ok" : "warning", human_bytes(*bytes) + " free for runs/"};
}

Finding shared_memory() {
  const auto bytes = free_bytes("/dev/shm");
  if (!bytes) return {"shared memory", "warning", bytes.error().message};
  return {"shared memory", *bytes >= (int64_t{64} << 20) ? "ok" : "warning", human_bytes(*bytes) + " free in /dev/shm"};
}

Finding open_files() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const bool enough = limit.rlim_cur >= 1024;
  return {"open files", enough ? "ok" : "warning", "at most " + std::to_string(limit.rlim_cur) + (enough ? "" : "; raise it with ulimit -n 4096")};
}

Finding devices() {
  const int count = count_gpus("/dev");
  const std::string cores = std::to_string(std::max(1u, std::thread::hardware_concurrency())) + " cores";
  if (count == 0) return {"devices", "ok", cores + ", no NVIDIA GPU"};
  return {"devices", kWithCuda ? "ok" : "warning", cores + ", " + std::to_string(count) + " NVIDIA GPUs" + (kWithCuda ? "" : ", but this build has no CUDA code (TESSERA_CUDA=on)")};
}

Finding loopback() {
  const auto status = check_port("operation.http", "127.0.0.1", 0);
  return status ? Finding{"loopback", "ok", "127.0.0.1 takes connections"} : Finding{"loopback", "problem", status.error().message};
}

}  // namespace

int doctor_command(Format format) {
  const std::vector<Finding> findings{programs(), trainer_starts(), devices(), memory(), shared_memory(), disk(), open_files(), loopback()};
  bool ok = true;
  Json list = Json::array();
  for (const Finding& finding : findings) {
    ok = ok && finding.state != "problem";
    list.push_back({{"check", finding.check}, {"state", finding.state}, {"text", finding.text}});
    if (format == Format::kText) std::printf("%-8s %-14s %s\n", finding.state.c_str(), finding.check.c_str(), finding.text.c_str());
  }
  if (format == Format::kJson) print_json({{"ok", ok}, {"checks", list}});
  return ok ? exit_codes::kDone : exit_codes::kUnreachable;
}

int version_command(Format format) {
  Json features = Json::array({"cpu"});
  if (kWithCuda) features.push_back("cuda");
  if (kWithCuda) features.push_back("nccl");
  const Json nccl = kWithCuda ? Json("2.28.9") : Json(nullptr);
  if (format == Format::kJson) {
    print_json({{"version", kVersion}, {"commit", build_commit()}, {"protocol", kProtocolVersion}, {"libtorch", kLibtorchVersion}, {"nccl", nccl}, {"cuda", kWithCuda}, {"features", features}});
  } else {
    std::printf("tessera %s (%s), protocol %u, LibTorch %s, CUDA code %s\n", kVersion, build_commit(), kProtocolVersion, kLibtorchVersion, kWithCuda ? "built" : "not built");
  }
  return exit_codes::kDone;
}

}  // namespace tessera::cli
