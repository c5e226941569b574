// The operations on a CPU: LibTorch's products, our loops for what it does slowly or not in a fixed order.
#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sum.h>

#include "worker/model/attention.h"
#include "worker/model/kernels.h"
#include "worker/model/ops.h"

namespace tessera::model {
namespace {

constexpr double kEps = 1e-6;
constexpr double kTargetEps = 1e-5;   // functional layer_norm's default: the published target normalisation
constexpr int64_t kPairsPerTask = 8;  // (sequence, head) pairs

kernels::AttentionShape attention_shape(const at::Tensor& qkv_rd, int64_t b, int64_t heads) { return {b, heads, qkv_rd.size(0) / b, qkv_rd.size(1) / 3 / heads}; }

class CpuOps : public Ops {
 public:
  CpuOps(const Layout& layout, bool bf16_products) : Ops(layout), bf16_(bf16_products) {}

  at::Tensor linear(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, LinearFor) const override {
    const at::Tensor weights = weight(w.full, p.weight), bias = weight(w.full, p.bias);
    if (bf16_) {
      return at::addmm(bias.to(at::kBFloat16), x_rd.to(at::kBFloat16), weights.to(at::kBFloat16).t()).to(at::kFloat);
    }
    return at::addmm(bias, x_rd, weights.t());
  }

  Joined linear_add_norm(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, const at::Tensor& residual_rd, const NextNorm* next) const override {
    Joined out;
    out.sum_rd = linear(w, x_rd, p, LinearFor::kStream).add_(residual_rd);
    if (next) out.norm = norm(w, out.sum_rd, next->places, next->use);
    return out;
  }

  Hidden linear_gelu(const Weights& w, const at::Tensor& x_rd, LinearPlaces p) const override {
    Hidden out;
    out.before_rd = linear(w, x_rd, p, LinearFor::kStream);
    out.after_rd = at::gelu(out.before_rd);
    return out;
  }

  at::Tensor linear_backward(const Weights& w, const at::Tensor& x_rd, const Flow& dy, LinearPlaces p, FlatBuffers& gradient, bool want_dx) const override {
    at::Tensor dw = weight(gradient, p.weight), db = weight(gradient, p.bias);
    const at::Tensor& dy_rd = dy.full_rd;
    at::sum_out(db, dy_rd, at::IntArrayRef{0});
    if (bf16_) {
      const at::Tensor dy_half = dy_rd.to(at::kBFloat16);
      dw.copy_(at::mm(dy_half.t(), x_rd.to(at::kBFloat16)));
      return want_dx ? at::mm(dy_half, weight(w.full, p.weight).to(at::kBFloat16)).to(at::kFloat) : at::Tensor();
    }
    at::mm_out(dw, dy_rd.t(), x_rd);
    return want_dx ? at::mm(dy_rd, weight(w.full, p.weight)) : at::Tensor();
  }

  Flow gelu_linear_backward(const Weights& w, const Hidden& hidden, const Flow& dy, LinearPlaces p, FlatBuffers& gradient) const override {
    const at::Tensor dactivated_rd = linear_backward(w, hidden.after_rd, dy, p, gradient, true);
    return at::gelu_backward(dactivated_rd, hidden.before_rd);
  }

  Norm norm(const Weights& w, const at::Tensor& x_rd, NormPlaces p, NormFor) const override {
    auto [out, mean, rstd] = at::native_layer_norm(x_rd, {x_rd.size(1)}, weight(w.full, p.weight), weight(w.full, p.bias), kEps);
    return {out, mean, rstd};
  }

  Flow norm_backward(const Weights& w, const at::Tensor& x_rd, const Norm& forward, const at::Tensor& dy_rd, const at::Tensor& residual_rd, NormPlaces p,
                     FlatBuffers& gradient) const override {
    const int64_t rows = x_rd.size(0), d = x_rd.size(1), chunks = kernels::chunk_count(rows);
    at::Tensor dx = at::empty_like(x_rd), scratch = at::empty({chunks, 2, d}, x_rd.options());
    at::Tensor dgamma = weight(gradient, p.weight), dbeta = weight(gradient, p.bias);
    const kernels::LayerNormBackward args{x_rd.const_data_ptr<float>(), dy_rd.const_data_ptr<float>(), forward.mean_r.const_data_ptr<float>(),
                                          forward.rstd_r.const_data_ptr<float>(), weight(w.full, p.weight).const_data_ptr<float>(),
                                          residual_rd.defined() ? residual_rd.const_data_ptr<float>() : nullptr, rows, d, dx.mutable_data_ptr<float>(),
                                          dgamma.mutable_data_ptr<float>(), dbeta.mutable_data_ptr<float>(), scratch.mutable_data_ptr<float>()};
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) { kernels::layer_norm_backward_chunks(args, first, last); });
    kernels::layer_norm_backward_finish(args);
    return dx;
  }

  at::Tensor target_norm(const at::Tensor& x_rd) const override { return at::layer_norm(x_rd, {x_rd.size(1)}, {}, {}, kTargetEps); }

  Attention attend(const at::Tensor& qkv_rd, int64_t b, int64_t heads, bool keep) const override {
    const kernels::AttentionShape shape = attention_shape(qkv_rd, b, heads);
    Attention result;
    result.out_rd = at::empty({qkv_rd.size(0), qkv_rd.size(1) / 3}, qkv_rd.options());
    if (keep) result.lse_bhn = at::empty({b, heads, shape.tokens}, qkv_rd.options());
    const float* qkv = qkv_rd.const_data_ptr<float>();
    float *out = result.out_rd.mutable_data_ptr<float>(), *lse = keep ? result.lse_bhn.mutable_data_ptr<float>() : nullptr;
    at::parallel_for(0, b * heads, kPairsPerTask, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(size_t(kernels::attention_scratch_floats(shape)));
      kernels::attention_forward(shape, qkv, first, last, out, lse, scratch.data());
    });
    return result;
  }

  Flow attend_backward(const at::Tensor& qkv_rd, const Attention& forward, const at::Tensor& dout_rd, int64_t b, int64_t heads) const override {
    const kernels::AttentionShape shape = attention_shape(qkv_rd, b, heads);
    at::Tensor dqkv_rd = at::empty(qkv_rd.sizes(), qkv_rd.options());
    const float *qkv = qkv_rd.const_data_ptr<float>(), *out = forward.out_rd.const_data_ptr<float>(), *lse = forward.lse_bhn.const_data_ptr<float>(),
                *dout = dout_rd.const_data_ptr<float>();
    float* dqkv = dqkv_rd.mutable_data_ptr<float>();
    at::parallel_for(0, b * heads, kPairsPerTask, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(size_t(kernels::attention_scratch_floats(shape)));
      kernels::attention_backward(shape, qkv, out, lse, dout, first, last, dqkv, scratch.data());
    });
    return dqkv_rd;
  }

  at::Tensor loss(kernels::Loss kind, const at::Tensor& prediction_rd, const at::Tensor& wanted_rd, at::Tensor& dprediction_rd) const override {
    const double sum = kernels::loss(kind, prediction_rd.const_data_ptr<float>(), wanted_rd.const_data_ptr<float>(), prediction_rd.numel(), dprediction_rd.mutable_data_ptr<float>());
    return at::scalar_tensor(sum, at::TensorOptions().dtype(at::kDouble));
  }

  at::Tensor patches(const at::Tensor& pixels, int64_t patch_size, const float mean[3], const float std[3]) const override {
    const int64_t b = pixels.size(0), size = pixels.size(1), count = (size / patch_size) * (size / patch_size), width = 3 * patch_size * patch_size;
    at::Tensor rows = at::empty({b * count, width}, at::kFloat);
    const uint8_t* in = pixels.const_data_ptr<uint8_t>();
    float* out = rows.mutable_data_ptr<float>();
    for (int64_t i = 0; i < b; ++i) kernels::patchify(in + i * size * size * 3, size, patch_size, mean, std, out + i * count * width);
    return rows;
  }

 private:
  bool bf16_;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(const Layout& layout, const std::string& precision) { return std::make_unique<CpuOps>(layout, precision != "fp32"); }

}  // namespace tessera::model
