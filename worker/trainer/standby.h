// A trainer without a name: LibTorch is loaded and every kernel has run once, so that it can take the place of a trainer
// that died within milliseconds instead of the second that a start takes (operation.spares).
//
// Its daemon speaks to it over standard input, one JSON object a line:
//   {"function": "<yaml>", "device": "cpu"}                       what to prepare for; "" for a device that only the order names
//   {"worker_id": "node-a/0", "incarnation": 42, "device": "cpu"} the order: be this worker from now on
// The end of the input before the order means that it is not needed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/config.h"
#include "common/ids.h"
#include "worker/model/engine.h"

namespace tessera::trainer {

// An engine all of whose kernels have run once, for the function whose text is `function_yaml` (print_function).
struct WarmEngine {
  std::string function_yaml, device;
  std::unique_ptr<model::Engine> engine;
};

// Makes an engine and sends one synthetic tile through it, so that the first step takes as long as the others. Errors of
// Engine::make.
Result<std::unique_ptr<model::Engine>> warm_engine(const FunctionConfig& function, const std::string& device);

struct StandbyOrder {
  WorkerId worker_id;
  uint64_t incarnation = 0;
  std::string device;
};
struct Standby {
  StandbyOrder order;
  WarmEngine warm;  // engine null: there was nothing to prepare for
};
// Blocks until the order comes. nullopt: the input ended. Errors: kFixConfig for a function that cannot be made here,
// kInternal for a line that is no order.
Result<std::optional<Standby>> stand_by(int descriptor);

}  // namespace tessera::trainer
