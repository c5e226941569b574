#include "worker/model/engine.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/upsample_bicubic2d.h>
#include <cmath>

#include "worker/model/backend.h"
#include "worker/model/kernels.h"
#include "worker/model/networks.h"

namespace tessera::model {
namespace {

constexpr double kCollapsed = 1e-6;  // variance of a feature, below which all tokens are the same

// exp(entropy) of the normalised eigenvalues of the features' covariance: how many directions they use.
double effective_rank(const at::Tensor& features_rd) {
  const at::Tensor centred = features_rd - features_rd.mean(0, true);
  const at::Tensor values = at::linalg_eigvalsh(centred.t().matmul(centred).to(at::kDouble)).clamp_min(0).cpu();
  const double* v = values.const_data_ptr<double>();
  double total = 0, entropy = 0;
  for (int64_t i = 0; i < values.numel(); ++i) total += v[i];
  // Rows are layer-normed: their mean square is 1. When next to nothing of it varies, what is left to rank is rounding.
  if (!(total > kCollapsed * double(features_rd.numel()))) return 1;
  for (int64_t i = 0; i < values.numel(); ++i)
    if (const double p = v[i] / total; p > 1e-12) entropy -= p * std::log(p);
  return std::exp(entropy);
}

// Row numbers of kept patches in [b N] rows: image * N + patch.
at::Tensor flat_rows(const at::Tensor& index_bk, int64_t patches) {
  const at::Tensor base = at::arange(index_bk.size(0), index_bk.options()).mul_(patches).unsqueeze(1);
  return (index_bk + base).reshape(-1);
}

kernels::Loss loss_kind(const std::string& name) {
  return name == "l1" ? kernels::Loss::kL1 : name == "l2" ? kernels::Loss::kL2 : kernels::Loss::kSmoothL1;
}

class NetworkEngine : public Engine {
 public:
  NetworkEngine(const FunctionConfig& f, std::unique_ptr<Layout> layout, std::unique_ptr<Ops> ops, std::unique_ptr<Ops> target_ops)
      : function_(f), layout_(std::move(layout)), passes_(std::move(ops)), target_passes_(std::move(target_ops)), encoder_(encoder_places(*layout_)), predictor_(predictor_places(*layout_)), loss_(loss_kind(f.optimizer.loss)) {
    for (int c = 0; c < 3; ++c) mean_[c] = float(f.data.mean[size_t(c)]), std_[c] = float(f.data.std[size_t(c)]);
  }

  TileResult gradient(const State& state, const Tile& tile, FlatBuffers& gradient, bool measure_rank, const GradientHooks& hooks) override {
    at::NoGradGuard no_grad;
    TileResult result;
    Forward f = forward(state, tile, true, hooks);
    if (measure_rank) result.effective_rank = effective_rank(f.target_normed_rd);
    at::Tensor dprediction_rd = at::empty(f.prediction_rd.sizes(), f.prediction_rd.options());
    const at::Tensor loss_sum = loss(f, dprediction_rd);
    for (at::Tensor* read : {&f.patches_rd, &f.target_normed_rd, &f.wanted_rd, &f.prediction_rd}) read->reset();  // before the backward wants room
    const at::Tensor dencoded_rd =
        predict_backward(passes_, trained(state), predictor_, f.shape, std::move(f.predictor_tape), dprediction_rd, gradient, hooks.bucket_ready);
    encode_backward(passes_, trained(state), encoder_, std::move(f.encoder_tape), dencoded_rd, f.shape.images * f.shape.contexts, function_.model.num_heads,
                    gradient, hooks.bucket_ready);
    result.loss = mean_loss(loss_sum, dprediction_rd);
    return result;
  }

  TileOutputs outputs(const State& state, const Tile& tile) override {
    at::NoGradGuard no_grad;
    Forward f = forward(state, tile, false, {});
    const PredictorShape& s = f.shape;
    TileOutputs out;
    const auto per_image = [&](const at::Tensor& rows) { return rows.view({s.images, -1, rows.size(1)}); };
    const auto per_sequence = [&](const at::Tensor& rows) {
      return function_.masks.target_masking == "output" ? per_image(rows) : rows.view({s.targets * s.images, s.target_length, rows.size(1)});
    };
    out.patch_embed_bnd = per_image(passes_.linear(trained(state), f.patches_rd, encoder_.patch_w, encoder_.patch_b));
    out.context_bkd = f.encoded_rd.view({s.contexts * s.images, s.context_length, -1});
    out.target_bnd = per_sequence(f.target_rd);
    out.target_normed_bnd = per_sequence(f.target_normed_rd);
    out.wanted_bkd = f.wanted_rd.view({s.sequences(), s.target_length, -1});
    out.prediction_bkd = f.prediction_rd.view({s.sequences(), s.target_length, -1});
    at::Tensor unused = at::empty(f.prediction_rd.sizes(), f.prediction_rd.options());
    out.loss = mean_loss(loss(f, unused), unused);
    return out;
  }

  at::Tensor features(const State& state, const at::Tensor& pixels_u8, bool context_encoder) override {
    at::NoGradGuard no_grad;
    const int64_t b = pixels_u8.size(0), grid = pixels_u8.size(1) / function_.model.patch_size;
    const at::Tensor position = interpolate_position(context_encoder ? state.context_position : state.target_position, grid);
    return encode(passes_, context_encoder ? trained(state) : averaged(state), encoder_, patch_rows(pixels_u8), position.repeat({b, 1}), b,
                  function_.model.num_heads, nullptr)
        .view({b, position.size(0), -1});
  }

 private:
  struct Forward {
    PredictorShape shape{};
    at::Tensor patches_rd, target_rd, target_normed_rd, encoded_rd, prediction_rd, wanted_rd;
    EncoderTape encoder_tape;
    PredictorTape predictor_tape;
  };

  static Weights trained(const State& state) { return {state.weights, &state.weights_half}; }
  static Weights averaged(const State& state) { return {state.target, &state.target_half}; }

  Tile bring(const Tile& host) const {
    Tile tile{passes_.ops().bring(host.pixels), {}, {}};
    for (const at::Tensor& mask : host.contexts) tile.contexts.push_back(passes_.ops().bring(mask));
    for (const at::Tensor& mask : host.targets) tile.targets.push_back(passes_.ops().bring(mask));
    return tile;
  }

  // The context comes first: it does not read the target, which may still be on its way.
  Forward forward(const State& state, const Tile& host_tile, bool keep_tapes, const GradientHooks& hooks) const {
    Forward f;
    const Tile tile = bring(host_tile);
    const int64_t b = tile.pixels.size(0), patches = state.context_position.size(0), heads = function_.model.num_heads;
    f.shape = {b, int64_t(tile.contexts.size()), int64_t(tile.targets.size()), tile.contexts[0].size(1), tile.targets[0].size(1),
               function_.predictor.num_heads};
    f.patches_rd = passes_.ops().patches(tile.pixels, function_.model.patch_size, mean_, std_);
    const at::Tensor context = at::cat(tile.contexts).reshape(-1), query = at::cat(tile.targets).reshape(-1);  // mask-major
    f.encoded_rd = encode(passes_, trained(state), encoder_, f.patches_rd.index_select(0, rows_of(tile.contexts, patches)),
                          state.context_position.index_select(0, context), b * f.shape.contexts, heads, keep_tapes ? &f.encoder_tape : nullptr);
    if (hooks.before_target) hooks.before_target();
    const bool whole = function_.masks.target_masking == "output";
    f.target_rd = whole ? encode(target_passes_, averaged(state), encoder_, f.patches_rd, state.target_position.repeat({b, 1}), b, heads, nullptr)
                        : encode(target_passes_, averaged(state), encoder_, f.patches_rd.index_select(0, rows_of(tile.targets, patches)),
                                 state.target_position.index_select(0, query), b * f.shape.targets, heads, nullptr);
    f.target_normed_rd = passes_.ops().target_norm(f.target_rd);
    if (keep_tapes) f.target_rd.reset();
    f.wanted_rd = repeat_over_contexts(whole ? f.target_normed_rd.index_select(0, rows_of(tile.targets, patches)) : f.target_normed_rd, f.shape);
    f.prediction_rd = predict(passes_, trained(state), predictor_, f.shape, f.encoded_rd, state.predictor_position.index_select(0, context),
                              state.predictor_position.index_select(0, query), keep_tapes ? &f.predictor_tape : nullptr);
    return f;
  }

  // Sum of the loss on the device; writes the mean's gradient for the prediction.
  at::Tensor loss(const Forward& f, at::Tensor& dprediction_rd) const { return passes_.ops().loss(loss_, f.prediction_rd, f.wanted_rd, dprediction_rd); }
  // The tile's own mean. Waits for the device.
  static double mean_loss(const at::Tensor& sum, const at::Tensor& prediction_rd) { return sum.item<double>() / double(prediction_rd.numel()); }

  at::Tensor patch_rows(const at::Tensor& pixels) const { return passes_.ops().patches(passes_.ops().bring(pixels), function_.model.patch_size, mean_, std_); }

  static at::Tensor rows_of(const std::vector<at::Tensor>& masks, int64_t patches) {
    std::vector<at::Tensor> rows;
    for (const at::Tensor& mask : masks) rows.push_back(flat_rows(mask, patches));
    return at::cat(rows);
  }

  static at::Tensor repeat_over_contexts(const at::Tensor& target_rd, const PredictorShape& s) {
    if (s.contexts == 1) return target_rd;
    return target_rd.view({s.targets, 1, s.images * s.target_length, -1}).expand({-1, s.contexts, -1, -1}).reshape({s.sequences() * s.target_length, -1});
  }

  FunctionConfig function_;
  std::unique_ptr<Layout> layout_;
  Passes passes_, target_passes_;
  EncoderPlaces encoder_;
  PredictorPlaces predictor_;
  kernels::Loss loss_;
  float mean_[3], std_[3];
};

}  // namespace

at::Tensor interpolate_position(const at::Tensor& table_nd, int64_t grid) {
  const int64_t side = std::llround(std::sqrt(double(table_nd.size(0)))), d = table_nd.size(1);
  if (side == grid) return table_nd;
  const at::Tensor table_1dhw = table_nd.view({1, side, side, d}).permute({0, 3, 1, 2});
  const at::Tensor wide_1dhw = at::upsample_bicubic2d(table_1dhw, at::IntArrayRef{grid, grid}, /*align_corners=*/false);
  return wide_1dhw.permute({0, 2, 3, 1}).reshape({grid * grid, d});
}

Result<std::unique_ptr<Engine>> Engine::make(const FunctionConfig& function, const std::string& device) {
  auto layout = std::make_unique<Layout>(Layout::make(function));
  TESSERA_ASSIGN(auto ops, make_ops(*layout, function.precision, device));
  TESSERA_ASSIGN(auto target_ops, make_ops(*layout, function.target_precision == "fp8" ? kFp8 : function.precision, device));
  return std::unique_ptr<Engine>(std::make_unique<NetworkEngine>(function, std::move(layout), std::move(ops), std::move(target_ops)));
}

}  // namespace tessera::model
