// One optimizer update and the EMA target, in scalar arithmetic whose bits do not depend on slicing, ISA or threads.
// AdamW (Loshchilov and Hutter) as torch computes it; EMA over everything the published code averages.
#pragma once

#include <cstdint>

#include "common/ids.h"
#include "worker/model/state.h"

namespace tessera::optimizer {

// Schedules of the published code (facts: ijepa 3.1), step k counted from 0: the values of its update k + 1.
struct StepRates {
  double lr = 0;
  double weight_decay = 0;
  double ema = 0;  // momentum applied after the update
};
class Schedule {
 public:
  // steps_per_epoch and total_steps of RunLength; ipe_scale stretches all. Pure.
  Schedule(const FunctionConfig& function, const RunLength& length);
  StepRates at(Step step) const;

 private:
  OptimizerConfig config_;
  double total_ = 0, ema_total_ = 0, warmup_ = 0;
};

struct GradientSummary {
  bool finite = true;
  double norm = 0;  // l2 of the scaled gradient
};
// From the reduced gradient alone, the same on every rank.
GradientSummary summarize(const model::State& state, const model::FlatBuffers& gradient, float scale);

// Applies the summed gradient, multiplied once by `scale` = float(1 / tiles): AdamW on weights and moments of every
// bucket (adam_steps advances), then state.step + 1. The target is not touched. A skipped step (non-finite gradient)
// advances state.step only.
void apply_adamw(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& config, bool skipped);

// On a GPU: the EMA target of the weights as they are, in place (after a skipped step).
void ema_on_device(model::State& state, double momentum);

// The reduced gradient's digest and summary in one pass, from memory as the update will read it.
struct GradientFacts {
  StateDigest digest;  // model::gradient_digest
  GradientSummary summary;
};
GradientFacts examine(const model::State& state, const model::FlatBuffers& gradient, float scale);

// A step that is not skipped, with the EMA target from the new weights, in one pass over each bucket: the bits of apply_adamw,
// then of ema_slice over everything put in the target's place. For a rank that computes all of the target itself.
void apply_with_target(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& config);

// momentum: StepRates::ema, as it is in double (1 - m is rounded from double, as published).
// T = m T + (1 - m) theta for floats [first, last) of the concatenated encoder buckets (bucket order), into `out`
// (last - first floats), reading state.target and state.weights; T is not touched. out: where
// the state is, host or device.
void ema_slice(const model::State& state, double momentum, int64_t first, int64_t last, float* out);
// The same for the position table, in place (every rank does it itself).
void ema_position(model::State& state, double momentum);

}  // namespace tessera::optimizer
