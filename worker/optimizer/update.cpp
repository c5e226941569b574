#include "worker/optimizer/update.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "worker/model/backend.h"
#include "worker/model/parallel.h"
#include "worker/model/pieces.h"
#include "worker/optimizer/update_kernels.h"

namespace tessera::optimizer {

GradientSummary summarize(const model::State& state, const model::FlatBuffers& gradient, float scale) { return examine(state, gradient, scale).summary; }

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

// AdamW, and with_target the EMA behind it while the new weights are in the cache, piece by piece on all compute threads.
void update_host(model::State& state, const model::FlatBuffers& gradient, const kernels::AdamW& decayed, const kernels::AdamW& undecayed, double momentum, bool with_target) {
  const std::vector<model::Piece> pieces = model::pieces_of(state.layout);
  at::parallel_for(0, int64_t(pieces.size()), model::kPiecesPerTask, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const model::Piece& piece = pieces[size_t(i)];
      const model::TensorPlace& place = *piece.place;
      const size_t bucket = size_t(place.bucket);
      const int64_t at = place.offset + piece.first;
      float* weights = state.weights[bucket].mutable_data_ptr<float>() + at;
      kernels::adamw(gradient[bucket].const_data_ptr<float>() + at, weights, state.exp_avg[bucket].mutable_data_ptr<float>() + at, state.exp_avg_sq[bucket].mutable_data_ptr<float>() + at, piece.count,
                     place.decayed ? decayed : undecayed);
      if (with_target && place.network == model::Network::kContextEncoder)
        kernels::ema_in_place(state.target[bucket].mutable_data_ptr<float>() + at, weights, momentum, piece.count);
    }
  });
}

void update(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& c, bool with_target) {
  ++state.step, ++state.adam_steps;
  kernels::AdamW undecayed = constants(scale, rates, c, state.adam_steps), decayed = undecayed;
  decayed.decay = float(1.0 - rates.lr * rates.weight_decay);
  if (model::on_device(state.weights)) model::backend()->update(state, gradient, decayed, undecayed, with_target ? std::optional(factors(rates.ema)) : std::nullopt);
  else update_host(state, gradient, decayed, undecayed, rates.ema, with_target);
}

}  // namespace

void ema_on_device(model::State& state, double momentum) {
  for (size_t i = 0; i < state.target.size(); ++i)
    if (state.target[i].defined())
      model::backend()->average(state.target[i].const_data_ptr<float>(), state.weights[i].const_data_ptr<float>(), factors(momentum), state.target[i].numel(), state.target[i].mutable_data_ptr<float>());
  model::backend()->refresh_target(state);
}

void apply_adamw(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& c, bool skipped) {
  if (skipped) ++state.step;
  else update(state, gradient, scale, rates, c, false);
}

void apply_with_target(model::State& state, const model::FlatBuffers& gradient, float scale, const StepRates& rates, const OptimizerConfig& c) { update(state, gradient, scale, rates, c, true); }

GradientFacts examine(const model::State& state, const model::FlatBuffers& gradient, float scale) {
  GradientFacts facts;
  const auto summary = [&](double squares) { return GradientSummary{std::isfinite(squares), std::sqrt(squares) * double(scale)}; };
  if (model::on_device(gradient)) {
    const model::Examined examined = model::backend()->examine(state.layout, gradient);
    return {examined.digest, summary(examined.squares)};
  }
  const std::vector<model::Piece> pieces = model::pieces_of(state.layout);
  std::vector<double> squares(pieces.size());
  std::vector<StateDigest> digests(pieces.size());
  at::parallel_for(0, int64_t(pieces.size()), model::kPiecesPerTask, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const model::Piece& piece = pieces[size_t(i)];
      const float* values = gradient[size_t(piece.place->bucket)].const_data_ptr<float>() + piece.place->offset + piece.first;
      digests[size_t(i)] = digest_elements(values, piece.count, piece.first, model::gradient_seeds(*piece.place));
      squares[size_t(i)] = kernels::sum_of_squares(values, piece.count);
    }
  });
  double total = 0;  // in the pieces' order
  for (size_t i = 0; i < pieces.size(); ++i) total += squares[i], facts.digest += digests[i];
  facts.summary = summary(total);
  return facts;
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
