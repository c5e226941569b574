#include "worker/optimizer/update.h"

#include <algorithm>
#include <cmath>

#include "worker/optimizer/update_kernels.h"

namespace tessera::optimizer {

GradientSummary summarize(const model::State& state, const model::FlatBuffers& gradient, float scale) {
  double total = 0;
  for (const auto& place : state.layout.tensors)
    total += kernels::sum_of_squares(gradient[size_t(place.bucket)].const_data_ptr<float>() + place.offset, place.count);
  return {std::isfinite(total), std::sqrt(total) * double(scale)};
}

void apply_adamw(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& c, bool skipped) {
  ++state.step;
  if (skipped) return;
  ++state.adam_steps;
  const double t = double(state.adam_steps);
  kernels::AdamW args{};
  args.scale = scale;
  args.step_size = float(rates.lr / (1.0 - std::pow(c.betas[0], t)));
  args.root_bc2 = float(std::sqrt(1.0 - std::pow(c.betas[1], t)));
  args.eps = float(c.eps);
  args.beta1 = float(c.betas[0]);
  args.beta2 = float(c.betas[1]);
  args.rest1 = float(1.0 - c.betas[0]);
  args.rest2 = float(1.0 - c.betas[1]);
  for (const auto& place : state.layout.tensors) {
    args.decay = place.decayed ? float(1.0 - rates.lr * rates.weight_decay) : 1.0f;
    const size_t bucket = size_t(place.bucket);
    kernels::adamw(gradient[bucket].const_data_ptr<float>() + place.offset, state.weights[bucket].mutable_data_ptr<float>() + place.offset,
                   state.exp_avg[bucket].mutable_data_ptr<float>() + place.offset, state.exp_avg_sq[bucket].mutable_data_ptr<float>() + place.offset,
                   place.count, args);
  }
}

void ema_slice(const model::State& state, double momentum, int64_t first, int64_t last, float* out) {
  int64_t start = 0;  // of the bucket in the concatenation
  for (size_t i = 0; i < state.layout.buckets.size(); ++i) {
    const auto& bucket = state.layout.buckets[i];
    if (bucket.network != model::Network::kContextEncoder) continue;
    const int64_t from = std::max(first, start), to = std::min(last, start + bucket.size);
    if (from < to)
      kernels::ema(state.target[i].const_data_ptr<float>() + (from - start), state.weights[i].const_data_ptr<float>() + (from - start), momentum, to - from,
                   out + (from - first));
    start += bucket.size;
  }
}

void ema_position(model::State& state, double momentum) {
  float* target = state.target_position.mutable_data_ptr<float>();
  at::Tensor before = state.target_position.clone();
  kernels::ema(before.const_data_ptr<float>(), state.context_position.const_data_ptr<float>(), momentum, before.numel(), target);
}

}  // namespace tessera::optimizer
