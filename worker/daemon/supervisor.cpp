#include "worker/daemon/supervisor.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <unistd.h>
#include <utility>

#include "common/log.h"

namespace tessera::worker {
namespace {

constexpr Millis kFirstDelayMs = 100, kLongestDelayMs = 5000, kGoodLifeMs = 30000;
constexpr Millis kStoppedMs = 300;        // a trainer that a signal has stopped this long is lost
constexpr Millis kFirstStandbyMs = 5000;  // the run's own start comes first
constexpr Millis kNextStandbyMs = 500;    // so does a recovery
constexpr int kStandbyTrust = 3;          // a worker that dies more often in a row gets the slow start with its backoff

// Odd: the channel uses the bytes as a routing identity, which must not begin with 0.
uint64_t new_incarnation() {
  std::random_device device;
  return (uint64_t{device()} << 32 | device()) | 1;
}

}  // namespace

Restart restart_policy(const ChildExit& exit) {
  switch (exit.exit_code) {
    case exit_codes::kDone:
    case exit_codes::kUsage:
    case exit_codes::kDrained:
    case exit_codes::kConfig:
    case exit_codes::kDataCorrupt:
    case exit_codes::kRefused:
    case exit_codes::kNonFinite:
    case exit_codes::kDeviceFaulty:
    case exit_codes::kVersionMismatch:
    case exit_codes::kFenced: return Restart::kNever;
    default: return Restart::kAgain;
  }
}

Millis restart_delay_ms(int failures) { return std::min(kLongestDelayMs, kFirstDelayMs << std::clamp(failures - 1, 0, 10)); }

Supervisor::Supervisor(DaemonOptions options) : options_(std::move(options)) {
  for (size_t i = 0; i < options_.devices.size(); ++i) {
    Slot slot;
    slot.slot = {options_.name + "/" + std::to_string(i), options_.devices[i]};
    slots_.push_back(std::move(slot));
  }
}

std::vector<proto::DeviceSlot> Supervisor::slots() const {
  std::vector<proto::DeviceSlot> out;
  for (const auto& slot : slots_) out.push_back(slot.slot);
  return out;
}

// GPUs have a program of their own beside the CPUs' one; where it is not built, the other says so.
std::string Supervisor::program_for(const std::string& device) const {
  const std::string cuda = options_.trainer + "-cuda";
  return device.starts_with("cuda") && ::access(cuda.c_str(), X_OK) == 0 ? cuda : options_.trainer;
}

SpawnOptions Supervisor::spawn_options(const std::string& program, std::vector<std::string> identity) const {
  const std::string threads = std::to_string(operation_.compute_threads);
  SpawnOptions spawn;
  spawn.command = {program, "--coordinator", options_.coordinator};
  spawn.command.insert(spawn.command.end(), identity.begin(), identity.end());
  spawn.command.insert(spawn.command.end(), {"--advertise", options_.advertise, "--threads", threads});
  if (!options_.log_dir.empty()) spawn.command.insert(spawn.command.end(), {"--log-dir", options_.log_dir});
  // Variables that choose library code paths decide bits: nothing is inherited, ours are set.
  spawn.clear_env_prefixes = {"ATEN_", "MKL_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_", "CUBLAS", "NVIDIA_TF32"};
  spawn.set_env = {{"MKL_CBWR", "AVX2"}, {"OMP_NUM_THREADS", threads}, {"CUBLAS_WORKSPACE_CONFIG", ":4096:8"}, {"GOMP_SPINCOUNT", kOpenMpSpins}};
  spawn.own_session = true;
  return spawn;
}

void Supervisor::start(Slot& slot, Millis now) {
  const WorkerId& id = slot.slot.worker_id;
  slot.incarnation = new_incarnation();
  slot.started_at = now;
  SpawnOptions spawn = spawn_options(program_for(slot.slot.device), {"--worker-id", id, "--device", slot.slot.device});
  spawn.set_env["TESSERA_INCARNATION"] = id + "=" + std::to_string(slot.incarnation);
  auto child = Child::spawn(spawn);
  if (child) {
    slot.child = std::move(*child);
    log_info("started trainer {} (pid {})", id, slot.child.pid());
    return;
  }
  log_error("trainer {}: {}", id, child.error().message);
  slot.next_start = now + restart_delay_ms(++slot.failures);
  reports_.exited.push_back({id, slot.incarnation, exit_codes::kBug, 0, child.error().message, true});
}

// False: there is none that can.
bool Supervisor::put_standby(Slot& slot, Millis now) {
  if (slot.retired || slot.failures > kStandbyTrust) return false;
  while (!standbys_.empty()) {
    Child child = std::move(standbys_.back());
    standbys_.pop_back();
    const uint64_t incarnation = new_incarnation();
    const nlohmann::json order{{"worker_id", slot.slot.worker_id}, {"incarnation", incarnation}, {"device", slot.slot.device}};
    if (!child.running() || !child.say(order.dump() + "\n")) continue;
    child.close_input();
    slot.child = std::move(child), slot.incarnation = incarnation, slot.started_at = now;
    next_standby_ = now + kNextStandbyMs;
    log_info("standby (pid {}) takes the place of trainer {}", slot.child.pid(), slot.slot.worker_id);
    return true;
  }
  return false;
}

// Keeps operation.spares of them. One that cannot prepare is not worth a fast loop: the backoff is the trainers'.
void Supervisor::tend_standbys(Millis now) {
  for (auto& child : standbys_) {
    ChildExit exit;
    if (!child.poll_exit(&exit)) continue;
    log_warning("a standby ended: {}", exit.cause);
    next_standby_ = now + restart_delay_ms(++standby_failures_);
  }
  std::erase_if(standbys_, [](const Child& child) { return !child.running(); });
  if (next_standby_ < 0) next_standby_ = now + kFirstStandbyMs;
  const bool retired = std::all_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.retired; });
  if (retired) return standbys_.clear();
  if (int64_t(standbys_.size()) >= operation_.spares || now < next_standby_) return;
  // Only CPUs can be shared while a trainer computes; a GPU's standby has the libraries loaded and waits for its device.
  const bool cpu = std::all_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.slot.device == "cpu"; });
  SpawnOptions spawn = spawn_options(program_for(cpu ? "cpu" : "cuda"), {"--standby"});
  spawn.pipe_input = true;
  auto child = Child::spawn(spawn);
  next_standby_ = now + kNextStandbyMs;
  if (!child) return log_error("standby: {}", child.error().message);
  if (child->say(nlohmann::json{{"function", function_yaml_}, {"device", cpu ? "cpu" : ""}}.dump() + "\n")) standbys_.push_back(std::move(*child));
}

// A stopped process answers nobody, and its peers wait for it.
void Supervisor::watch_stopped(Slot& slot, Millis now) {
  if (!slot.child.running() || !slot.child.stopped()) {
    slot.stopped_since = -1;
    return;
  }
  if (slot.stopped_since < 0) slot.stopped_since = now;
  if (now - slot.stopped_since < kStoppedMs || slot.stopped) return;
  log_warning("trainer {} has been stopped by a signal for {} ms: killing it", slot.slot.worker_id, now - slot.stopped_since);
  slot.stopped = true;
  slot.child.send(SIGKILL);
}

void Supervisor::on_exit(Slot& slot, const ChildExit& exit, Millis now) {
  const WorkerId& id = slot.slot.worker_id;
  if (now - slot.started_at > kGoodLifeMs) slot.failures = 0;
  slot.next_start = now + (killed_from_outside(exit.signal, exit.cause) ? 0 : restart_delay_ms(++slot.failures));
  slot.stopped_since = -1;
  const std::string cause = std::exchange(slot.stopped, false) ? "stopped by a signal and killed by its daemon" : exit.cause;
  if (std::exchange(slot.fencing, false)) {
    log_warning("trainer {} fenced: {}", id, exit.cause);
    reports_.fenced.push_back({id, slot.incarnation});
    return;
  }
  slot.retired = slot.retired || restart_policy(exit) == Restart::kNever;
  log_warning("trainer {} ended: {}", id, cause);
  reports_.exited.push_back({id, slot.incarnation, exit.exit_code, exit.signal, cause, !slot.retired});
}

Reports Supervisor::tick(Millis now) {
  for (auto& slot : slots_) {
    ChildExit exit;
    watch_stopped(slot, now);
    if (slot.child.poll_exit(&exit)) {
      on_exit(slot, exit, now);
      if (put_standby(slot, now)) continue;
    }
    if (started_ && !slot.child.running() && !slot.retired && now >= slot.next_start) start(slot, now);
  }
  if (started_) tend_standbys(now);
  return std::exchange(reports_, {});
}

void Supervisor::fence(const WorkerId& worker_id, uint64_t incarnation) {
  for (auto& slot : slots_) {
    if (slot.slot.worker_id != worker_id || !slot.child.running() || (incarnation != 0 && incarnation != slot.incarnation)) continue;
    slot.fencing = true;
    slot.child.send(SIGKILL);
    return;
  }
  reports_.fenced.push_back({worker_id, incarnation});
}

void Supervisor::retire() {
  for (auto& slot : slots_) slot.retired = true;
}

void Supervisor::signal_all(int signal) const {
  for (const auto& slot : slots_) slot.child.send(signal);
}

std::vector<int> Supervisor::descriptors() const {
  std::vector<int> out;
  for (const auto& slot : slots_)
    if (slot.child.descriptor() >= 0) out.push_back(slot.child.descriptor());
  for (const auto& standby : standbys_) out.push_back(standby.descriptor());
  return out;
}

std::vector<WorkerId> Supervisor::running() const {
  std::vector<WorkerId> out;
  for (const auto& slot : slots_)
    if (slot.child.running()) out.push_back(slot.slot.worker_id);
  return out;
}

}  // namespace tessera::worker
