#include "worker/daemon/supervisor.h"

#include <algorithm>

#include "common/clock.h"
#include "common/log.h"

namespace tessera::worker {
namespace {

constexpr Millis kFirstDelayMs = 100, kLongestDelayMs = 5000, kGoodLifeMs = 30000;

}  // namespace

Restart restart_policy(const ChildExit& exit) {
  switch (exit.exit_code) {
    case exit_codes::kDone:
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

Millis restart_delay_ms(int failures) {
  if (failures <= 0) return 0;
  return std::min(kLongestDelayMs, kFirstDelayMs << std::min(failures - 1, 10));
}

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
  SpawnOptions spawn;
  spawn.command = {options_.trainer, "--coordinator", options_.coordinator, "--worker-id", slot.slot.worker_id, "--device", slot.slot.device, "--advertise", options_.advertise,
                   "--threads", std::to_string(operation_.compute_threads)};
  if (!options_.log_dir.empty()) spawn.command.insert(spawn.command.end(), {"--log-dir", options_.log_dir});
  // Variables that choose library code paths decide bits: nothing is inherited, ours are set.
  spawn.clear_env_prefixes = {"ATEN_", "MKL_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_"};
  spawn.set_env = {{"MKL_CBWR", "AVX2"}, {"OMP_NUM_THREADS", std::to_string(operation_.compute_threads)}};
  spawn.own_session = true;
  slot.started_at = now;
  auto child = Child::spawn(spawn);
  if (child) {
    slot.child = std::move(*child);
    log_info("started trainer {} (pid {})", slot.slot.worker_id, slot.child.pid());
    return;
  }
  log_error("trainer {}: {}", slot.slot.worker_id, child.error().message);
  slot.next_start = now + restart_delay_ms(++slot.failures);
}

std::vector<proto::TrainerExited> Supervisor::tick(Millis now) {
  for (auto& slot : slots_) {
    ChildExit exit;
    if (slot.child.poll_exit(&exit)) {
      if (now - slot.started_at > kGoodLifeMs) slot.failures = 0;
      const bool again = restart_policy(exit) == Restart::kAgain;
      log_warning("trainer {} ended: {}", slot.slot.worker_id, exit.cause);
      pending_.push_back({slot.slot.worker_id, 0, exit.exit_code, exit.signal, exit.cause, again});
      slot.retired = !again;
      slot.next_start = now + restart_delay_ms(slot.failures++);
    }
    if (started_ && !slot.child.running() && !slot.retired && now >= slot.next_start) start(slot, now);
  }
  return std::exchange(pending_, {});
}

bool Supervisor::fence(const WorkerId& worker_id) {
  for (auto& slot : slots_) {
    if (slot.slot.worker_id != worker_id || !slot.child.running()) continue;
    slot.child.send(SIGKILL);
    const ChildExit exit = slot.child.stop(0);
    log_warning("trainer {} fenced: {}", worker_id, exit.cause);
    slot.next_start = monotonic_ms() + restart_delay_ms(slot.failures++);
    return true;
  }
  return false;
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

void Supervisor::stop(Millis grace_ms) {
  for (auto& slot : slots_) slot.retired = true, slot.child.send(SIGTERM);
  const Millis end = monotonic_ms() + grace_ms;
  for (auto& slot : slots_) {
    if (!slot.child.running()) continue;
    const ChildExit exit = slot.child.stop(std::max<Millis>(0, end - monotonic_ms()));
    pending_.push_back({slot.slot.worker_id, 0, exit.exit_code, exit.signal, exit.cause, false});
  }
}

}  // namespace tessera::worker
