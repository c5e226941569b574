#include "worker/optimizer/update.h"

#include <algorithm>
#include <cmath>

#include "worker/model/backend.h"
#include "worker/optimizer/update_kernels.h"

namespace tessera::optimizer {

GradientSummary summarize(const model::State& state, const model::FlatBuffers& gradient, float scale) {
  double total = 0;
  if (model::on_device(gradient)) {
    total = model::backend()->examine(state.layout, gradient).squares;
    return {std::isfinite(total), std::sqrt(total) * double(scale)};
  }
  for (const auto& place : state.layout.tensors)
    total += kernels::sum_of_squares(gradient[size_t(place.bucket)].const_data_ptr<float>() + place.offset, place.count);
  return {std::isfinite(total), std::sqrt(total) * double(scale)};
}

namespace {

// Rounded once from double; decay is the tensor's own.
kernels::AdamW constants(float scale, const StepRates& rates, const OptimizerConfig& c, int64_t adam_steps) {
  const double t = double(adam_steps);
  kernels::AdamW args{};
  args.scale = scale;
  args.step_size = float(rates.lr / (1.0 - std::pow(c.betas[0], t)));
  args.root_bc2 = float(std::sqrt(1.0 - std::pow(c.betas[1], t)));
  args.eps = float(c.eps);
  args.beta1 = float(c.betas[0]);
  args.beta2 = float(c.betas[1]);
  args.rest1 = float(1.0 - c.betas[0]);
  args.rest2 = float(1.0 - c.betas[1]);
  args.decay = 1.0f;
  return args;
}

model::EmaFactors factors(double momentum) { return {float(momentum), float(1.0 - momentum)}; }

}  // namespace

void apply_on_device(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& c, bool with_target) {
  ++state.step, ++state.adam_steps;
  kernels::AdamW undecayed = constants(scale, rates, c, state.adam_steps), decayed = undecayed;
  decayed.decay = float(1.0 - rates.lr * rates.weight_decay);
  model::backend()->update(state, gradient, decayed, undecayed, with_target ? std::optional(factors(rates.ema)) : std::nullopt);
}

void ema_on_device(model::State& state, double momentum) {
  for (size_t i = 0; i < state.target.size(); ++i)
    if (state.target[i].defined())
      model::backend()->average(state.target[i].const_data_ptr<float>(), state.weights[i].const_data_ptr<float>(), factors(momentum), state.target[i].numel(), state.target[i].mutable_data_ptr<float>());
  model::backend()->refresh_target(state);
}

void apply_adamw(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& c, bool skipped) {
  if (!skipped && model::on_device(state.weights)) return apply_on_device(state, gradient, scale, rates, c, false);
  ++state.step;
  if (skipped) return;
  ++state.adam_steps;
  kernels::AdamW args = constants(scale, rates, c, state.adam_steps);
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
    if (from < to && model::on_device(state.weights))
      model::backend()->average(state.target[i].const_data_ptr<float>() + (from - start), state.weights[i].const_data_ptr<float>() + (from - start), factors(momentum), to - from, out + (from - first));
    else if (from < to)
      kernels::ema(state.target[i].const_data_ptr<float>() + (from - start), state.weights[i].const_data_ptr<float>() + (from - start), momentum, to - from,
                   out + (from - first));
    start += bucket.size;
  }
}

void ema_position(model::State& state, double momentum) {
  float* target = state.target_position.mutable_data_ptr<float>();
  at::Tensor before = state.target_position.clone();
  if (before.is_cuda()) return model::backend()->average(before.const_data_ptr<float>(), state.context_position.const_data_ptr<float>(), factors(momentum), before.numel(), target);
  kernels::ema(before.const_data_ptr<float>(), state.context_position.const_data_ptr<float>(), momentum, before.numel(), target);
}

}  // namespace tessera::optimizer
