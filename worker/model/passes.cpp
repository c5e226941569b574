#include "worker/model/passes.h"

#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/sum.h>

#include "worker/model/attention.h"
#include "worker/model/kernels.h"

namespace tessera::model {
namespace {

constexpr double kEps = 1e-6;
constexpr int64_t kPairsPerTask = 8;  // (sequence, head) pairs

kernels::AttentionShape attention_shape(const at::Tensor& qkv_rd, int64_t b, int64_t heads) { return {b, heads, qkv_rd.size(0) / b, qkv_rd.size(1) / 3 / heads}; }

// [r, 3 d] -> [r, d]; lse [b, h, n] when wanted.
at::Tensor attend(const at::Tensor& qkv_rd, int64_t b, int64_t heads, at::Tensor* lse_bhn) {
  const kernels::AttentionShape shape = attention_shape(qkv_rd, b, heads);
  at::Tensor out_rd = at::empty({qkv_rd.size(0), qkv_rd.size(1) / 3}, qkv_rd.options());
  if (lse_bhn) *lse_bhn = at::empty({b, heads, shape.tokens}, qkv_rd.options());
  const float* qkv = qkv_rd.const_data_ptr<float>();
  float *out = out_rd.mutable_data_ptr<float>(), *lse = lse_bhn ? lse_bhn->mutable_data_ptr<float>() : nullptr;
  at::parallel_for(0, b * heads, kPairsPerTask, [&](int64_t first, int64_t last) {
    std::vector<float> scratch(size_t(kernels::attention_scratch_floats(shape)));
    kernels::attention_forward(shape, qkv, first, last, out, lse, scratch.data());
  });
  return out_rd;
}

at::Tensor attend_backward(const at::Tensor& qkv_rd, const at::Tensor& out_rd, const at::Tensor& lse_bhn, const at::Tensor& dout_rd, int64_t b, int64_t heads) {
  const kernels::AttentionShape shape = attention_shape(qkv_rd, b, heads);
  at::Tensor dqkv_rd = at::empty(qkv_rd.sizes(), qkv_rd.options());
  const float *qkv = qkv_rd.const_data_ptr<float>(), *out = out_rd.const_data_ptr<float>(), *lse = lse_bhn.const_data_ptr<float>(), *dout = dout_rd.const_data_ptr<float>();
  float* dqkv = dqkv_rd.mutable_data_ptr<float>();
  at::parallel_for(0, b * heads, kPairsPerTask, [&](int64_t first, int64_t last) {
    std::vector<float> scratch(size_t(kernels::attention_scratch_floats(shape)));
    kernels::attention_backward(shape, qkv, out, lse, dout, first, last, dqkv, scratch.data());
  });
  return dqkv_rd;
}

}  // namespace

at::Tensor Passes::weight(const FlatBuffers& role, int place) const {
  const TensorPlace& p = layout_.tensors[size_t(place)];
  const at::Tensor flat = role[size_t(p.bucket)].narrow(0, p.offset, p.count);
  return p.shape.size() == 1 ? flat : flat.view({p.shape[0], p.count / p.shape[0]});
}

at::Tensor Passes::linear(const FlatBuffers& w, const at::Tensor& x_rd, int weight_place, int bias_place) const {
  const at::Tensor weights = weight(w, weight_place), bias = weight(w, bias_place);
  if (bf16_) {
    return at::addmm(bias.to(at::kBFloat16), x_rd.to(at::kBFloat16), weights.to(at::kBFloat16).t()).to(at::kFloat);
  }
  return at::addmm(bias, x_rd, weights.t());
}

at::Tensor Passes::linear_backward(const FlatBuffers& w, const at::Tensor& x_rd, const at::Tensor& dy_rd, int weight_place, int bias_place,
                                   FlatBuffers& gradient, bool want_dx) const {
  at::Tensor dw = weight(gradient, weight_place), db = weight(gradient, bias_place);
  at::sum_out(db, dy_rd, at::IntArrayRef{0});
  if (bf16_) {
    const at::Tensor dy_half = dy_rd.to(at::kBFloat16);
    dw.copy_(at::mm(dy_half.t(), x_rd.to(at::kBFloat16)));
    return want_dx ? at::mm(dy_half, weight(w, weight_place).to(at::kBFloat16)).to(at::kFloat) : at::Tensor();
  }
  at::mm_out(dw, dy_rd.t(), x_rd);
  return want_dx ? at::mm(dy_rd, weight(w, weight_place)) : at::Tensor();
}

Norm Passes::norm(const FlatBuffers& w, const at::Tensor& x_rd, int weight_place, int bias_place) const {
  auto [out, mean, rstd] = at::native_layer_norm(x_rd, {x_rd.size(1)}, weight(w, weight_place), weight(w, bias_place), kEps);
  return {out, mean, rstd};
}

at::Tensor Passes::norm_backward(const FlatBuffers& w, const at::Tensor& x_rd, const Norm& forward, const at::Tensor& dy_rd, const at::Tensor& residual_rd,
                                 int weight_place, int bias_place, FlatBuffers& gradient) const {
  const int64_t rows = x_rd.size(0), d = x_rd.size(1), chunks = kernels::chunk_count(rows);
  at::Tensor dx = at::empty_like(x_rd), scratch = at::empty({chunks, 2, d}, x_rd.options());
  at::Tensor dgamma = weight(gradient, weight_place), dbeta = weight(gradient, bias_place);
  const kernels::LayerNormBackward args{x_rd.const_data_ptr<float>(), dy_rd.const_data_ptr<float>(), forward.mean_r.const_data_ptr<float>(),
                                        forward.rstd_r.const_data_ptr<float>(), weight(w, weight_place).const_data_ptr<float>(),
                                        residual_rd.defined() ? residual_rd.const_data_ptr<float>() : nullptr, rows, d, dx.mutable_data_ptr<float>(),
                                        dgamma.mutable_data_ptr<float>(), dbeta.mutable_data_ptr<float>(), scratch.mutable_data_ptr<float>()};
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) { kernels::layer_norm_backward_chunks(args, first, last); });
  kernels::layer_norm_backward_finish(args);
  return dx;
}

at::Tensor Passes::block(const FlatBuffers& w, const BlockPlaces& p, const at::Tensor& x_rd, int64_t b, int64_t heads, BlockTape* tape) const {
  Norm norm1 = norm(w, x_rd, p.norm1_w, p.norm1_b);
  at::Tensor qkv_rd = linear(w, norm1.out_rd, p.qkv_w, p.qkv_b);
  at::Tensor lse_bhn;
  at::Tensor joined_rd = attend(qkv_rd, b, heads, tape ? &lse_bhn : nullptr);
  at::Tensor middle_rd = linear(w, joined_rd, p.proj_w, p.proj_b).add_(x_rd);
  Norm norm2 = norm(w, middle_rd, p.norm2_w, p.norm2_b);
  at::Tensor hidden_rd = linear(w, norm2.out_rd, p.fc1_w, p.fc1_b);
  at::Tensor activated_rd = at::gelu(hidden_rd);
  at::Tensor out_rd = linear(w, activated_rd, p.fc2_w, p.fc2_b).add_(middle_rd);
  if (tape) *tape = {x_rd, middle_rd, norm1, norm2, qkv_rd, joined_rd, lse_bhn, hidden_rd, activated_rd};
  return out_rd;
}

at::Tensor Passes::block_backward(const FlatBuffers& w, const BlockPlaces& p, const BlockTape& t, const at::Tensor& dy_rd, int64_t b, int64_t heads,
                                  FlatBuffers& gradient) const {
  const at::Tensor dactivated = linear_backward(w, t.activated_rd, dy_rd, p.fc2_w, p.fc2_b, gradient, true);
  const at::Tensor dhidden = at::gelu_backward(dactivated, t.hidden_rd);
  const at::Tensor dnorm2 = linear_backward(w, t.norm2.out_rd, dhidden, p.fc1_w, p.fc1_b, gradient, true);
  const at::Tensor dmiddle = norm_backward(w, t.middle_rd, t.norm2, dnorm2, dy_rd, p.norm2_w, p.norm2_b, gradient);
  const at::Tensor djoined = linear_backward(w, t.joined_rd, dmiddle, p.proj_w, p.proj_b, gradient, true);
  const at::Tensor dqkv_rd = attend_backward(t.qkv_rd, t.joined_rd, t.lse_bhn, djoined, b, heads);
  const at::Tensor dnorm1 = linear_backward(w, t.norm1.out_rd, dqkv_rd, p.qkv_w, p.qkv_b, gradient, true);
  return norm_backward(w, t.x_rd, t.norm1, dnorm1, dmiddle, p.norm1_w, p.norm1_b, gradient);
}

}  // namespace tessera::model
