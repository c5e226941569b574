#include "worker/daemon/supervisor.h"

#include <algorithm>
#include <random>
#include <utility>

#include "common/log.h"

namespace tessera::worker {
namespace {

constexpr Millis kFirstDelayMs = 100, kLongestDelayMs = 5000, kGoodLifeMs = 30000;

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

void Supervisor::start(Slot& slot, Millis now) {
  const WorkerId& id = slot.slot.worker_id;
  const std::string threads = std::to_string(operation_.compute_threads);
  slot.incarnation = new_incarnation();
  slot.started_at = now;
  SpawnOptions spawn;
  spawn.command = {options_.trainer, "--coordinator", options_.coordinator, "--worker-id", id, "--device", slot.slot.device, "--advertise", options_.advertise, "--threads", threads};
  if (!options_.log_dir.empty()) spawn.command.insert(spawn.command.end(), {"--log-dir", options_.log_dir});
  // Variables that choose library code paths decide bits: nothing is inherited, ours are set.
  spawn.clear_env_prefixes = {"ATEN_", "MKL_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_"};
  spawn.set_env = {{"MKL_CBWR", "AVX2"}, {"OMP_NUM_THREADS", threads}, {"TESSERA_INCARNATION", id + "=" + std::to_string(slot.incarnation)}};
  spawn.own_session = true;
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

void Supervisor::on_exit(Slot& slot, const ChildExit& exit, Millis now) {
  const WorkerId& id = slot.slot.worker_id;
  if (now - slot.started_at > kGoodLifeMs) slot.failures = 0;
  slot.next_start = now + restart_delay_ms(++slot.failures);
  if (std::exchange(slot.fencing, false)) {
    log_warning("trainer {} fenced: {}", id, exit.cause);
    reports_.fenced.push_back({id, slot.incarnation});
    return;
  }
  slot.retired = slot.retired || restart_policy(exit) == Restart::kNever;
  log_warning("trainer {} ended: {}", id, exit.cause);
  reports_.exited.push_back({id, slot.incarnation, exit.exit_code, exit.signal, exit.cause, !slot.retired});
}

Reports Supervisor::tick(Millis now) {
  for (auto& slot : slots_) {
    ChildExit exit;
    if (slot.child.poll_exit(&exit)) on_exit(slot, exit, now);
    if (started_ && !slot.child.running() && !slot.retired && now >= slot.next_start) start(slot, now);
  }
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
  return out;
}

std::vector<WorkerId> Supervisor::running() const {
  std::vector<WorkerId> out;
  for (const auto& slot : slots_)
    if (slot.child.running()) out.push_back(slot.slot.worker_id);
  return out;
}

}  // namespace tessera::worker
