#include "worker/model/engine.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <cmath>

#include "worker/model/kernels.h"
#include "worker/model/networks.h"

namespace tessera::model {
namespace {

constexpr double kTargetEps = 1e-5;  // functional layer_norm's default: the published target normalisation

// exp(entropy) of the normalised eigenvalues of the features' covariance: how many directions they use.
double effective_rank(const at::Tensor& features_rd) {
  const at::Tensor centred = features_rd - features_rd.mean(0, true);
  const at::Tensor values = at::linalg_eigvalsh(centred.t().matmul(centred).to(at::kDouble)).clamp_min(0);
  const double* v = values.const_data_ptr<double>();
  double total = 0, entropy = 0;
  for (int64_t i = 0; i < values.numel(); ++i) total += v[i];
  if (!(total > 0)) return 0;
  for (int64_t i = 0; i < values.numel(); ++i)
    if (const double p = v[i] / total; p > 1e-12) entropy -= p * std::log(p);
  return std::exp(entropy);
}

// Row numbers of kept patches in [b N] rows: image * N + patch.
at::Tensor flat_rows(const at::Tensor& index_bk, int64_t patches) {
  const at::Tensor base = at::arange(index_bk.size(0), index_bk.options()).mul_(patches).unsqueeze(1);
  return (index_bk + base).reshape(-1);
}

class CpuEngine : public Engine {
 public:
  explicit CpuEngine(const FunctionConfig& f)
      : function_(f), layout_(Layout::make(f)), passes_(layout_, f.precision != "fp32"), encoder_(encoder_places(layout_)), predictor_(predictor_places(layout_)) {
    for (int c = 0; c < 3; ++c) mean_[c] = float(f.data.mean[size_t(c)]), std_[c] = float(f.data.std[size_t(c)]);
  }

  TileResult gradient(const State& state, const Tile& tile, FlatBuffers& gradient, bool measure_rank) override {
    at::NoGradGuard no_grad;
    TileResult result;
    const int64_t b = tile.pixels.size(0), patches = state.context_position.size(0);
    const at::Tensor patches_rd = patch_rows(tile.pixels);
    const at::Tensor target_rd = target_features(state, patches_rd, b);
    if (measure_rank) result.effective_rank = effective_rank(target_rd);

    const PredictorShape shape{b, int64_t(tile.contexts.size()), int64_t(tile.targets.size()), tile.contexts[0].size(1), tile.targets[0].size(1),
                               function_.predictor.num_heads};
    const at::Tensor context = at::cat(tile.contexts), query = at::cat(tile.targets);  // mask-major [masks * b, K]
    const at::Tensor context_rows = context.reshape(-1);
    const at::Tensor kept_rows = rows_of(tile.contexts, patches);
    EncoderTape encoder_tape;
    const at::Tensor encoded_rd = encode(passes_, state.weights, encoder_, patches_rd.index_select(0, kept_rows),
                                         state.context_position.index_select(0, context_rows), b * shape.contexts, function_.model.num_heads, &encoder_tape);
    PredictorTape predictor_tape;
    const at::Tensor prediction_rd =
        predict(passes_, state.weights, predictor_, shape, encoded_rd, state.predictor_position.index_select(0, context_rows),
                state.predictor_position.index_select(0, query.reshape(-1)), &predictor_tape);

    const at::Tensor wanted_rd = repeat_over_contexts(target_rd.index_select(0, rows_of(tile.targets, patches)), shape);
    at::Tensor dprediction_rd = at::empty(prediction_rd.sizes(), prediction_rd.options());
    const int64_t n = prediction_rd.numel();
    result.loss = kernels::smooth_l1(prediction_rd.const_data_ptr<float>(), wanted_rd.const_data_ptr<float>(), n, dprediction_rd.mutable_data_ptr<float>()) / double(n);

    const at::Tensor dencoded_rd = predict_backward(passes_, state.weights, predictor_, shape, predictor_tape, dprediction_rd, gradient);
    predictor_tape = {};
    encode_backward(passes_, state.weights, encoder_, encoder_tape, dencoded_rd, b * shape.contexts, function_.model.num_heads, gradient);
    return result;
  }

  at::Tensor features(const State& state, const at::Tensor& pixels_u8, bool context_encoder) override {
    at::NoGradGuard no_grad;
    const int64_t b = pixels_u8.size(0);
    const at::Tensor& position = context_encoder ? state.context_position : state.target_position;
    return encode(passes_, context_encoder ? state.weights : state.target, encoder_, patch_rows(pixels_u8), position.repeat({b, 1}), b, function_.model.num_heads,
                  nullptr)
        .view({b, position.size(0), -1});
  }

 private:
  at::Tensor patch_rows(const at::Tensor& pixels) const {
    const int64_t b = pixels.size(0), size = pixels.size(1), patch = function_.model.patch_size, count = (size / patch) * (size / patch);
    at::Tensor rows = at::empty({b * count, 3 * patch * patch}, at::kFloat);
    const uint8_t* in = pixels.const_data_ptr<uint8_t>();
    float* out = rows.mutable_data_ptr<float>();
    for (int64_t i = 0; i < b; ++i) kernels::patchify(in + i * size * size * 3, size, patch, mean_, std_, out + i * count * 3 * patch * patch);
    return rows;
  }

  at::Tensor target_features(const State& state, const at::Tensor& patches_rd, int64_t b) const {
    const at::Tensor out_rd = encode(passes_, state.target, encoder_, patches_rd, state.target_position.repeat({b, 1}), b, function_.model.num_heads, nullptr);
    return at::layer_norm(out_rd, {out_rd.size(1)}, {}, {}, kTargetEps);
  }

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
  Layout layout_;
  Passes passes_;
  EncoderPlaces encoder_;
  PredictorPlaces predictor_;
  float mean_[3], std_[3];
};

}  // namespace

Result<std::unique_ptr<Engine>> Engine::make(const FunctionConfig& function, const std::string& device) {
  if (device != "cpu")
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + ": this build computes on cpu only; set operation.device: cpu");
  return std::unique_ptr<Engine>(std::make_unique<CpuEngine>(function));
}

}  // namespace tessera::model
