// The status document of INTERFACES.md from the machine's state; built on the loop thread, then read by HTTP threads as
// an immutable snapshot.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "coordinator/machine.h"
#include "coordinator/store.h"

namespace tessera::coordinator {

struct LossPoint {
  Step step = 0;
  double loss = 0, images_per_second = 0, effective_rank = 0, lr = 0;
};

// What the HTTP threads may see.
struct Snapshot {
  nlohmann::ordered_json status;
  nlohmann::ordered_json checkpoints;
  std::vector<StoredEvent> events;
  std::vector<LossPoint> curve;  // at most a few thousand points
  std::string metrics;           // Prometheus text
  bool ready = false;            // a world is running or has run
};

// Rates over the last steps; fed with every committed step.
class Throughput {
 public:
  void add(const proto::StepDone& done);
  double images_per_second() const;
  double step_seconds(double quantile) const;
  proto::TimeSplit split() const;  // mean of the window

 private:
  std::vector<proto::StepDone> window_;
};

struct StatusInput {
  const State& state;
  const MachineConfig& config;
  const Throughput& throughput;
  Millis now = 0;
  double unix_now = 0;
  double started_at = 0;
  uint64_t revision = 0;
};
nlohmann::ordered_json status_document(const StatusInput& in);
nlohmann::ordered_json checkpoint_list(const State& state);
std::string prometheus_text(const StatusInput& in);

}  // namespace tessera::coordinator
