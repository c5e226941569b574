#include "worker/model/passes.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/sum.h>

#include "worker/model/kernels.h"

namespace tessera::model {
namespace {

constexpr double kEps = 1e-6;

struct Heads {
  at::Tensor q, k, v;  // [b, h, n, d / h], views of the packed [r, 3 d]
};
Heads split_heads(const at::Tensor& qkv_rd, int64_t b, int64_t heads) {
  const int64_t n = qkv_rd.size(0) / b, d = qkv_rd.size(1) / 3;
  const auto packed = qkv_rd.view({b, n, 3, heads, d / heads}).permute({2, 0, 3, 1, 4});
  return {packed.select(0, 0), packed.select(0, 1), packed.select(0, 2)};
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
  const Heads heads_bhnd = split_heads(qkv_rd, b, heads);
  auto [attention, lse] = at::_scaled_dot_product_flash_attention_for_cpu(heads_bhnd.q, heads_bhnd.k, heads_bhnd.v, 0.0, false);
  const at::Tensor joined_rd = attention.transpose(1, 2).reshape(x_rd.sizes());
  at::Tensor middle_rd = linear(w, joined_rd, p.proj_w, p.proj_b).add_(x_rd);
  Norm norm2 = norm(w, middle_rd, p.norm2_w, p.norm2_b);
  at::Tensor hidden_rd = linear(w, norm2.out_rd, p.fc1_w, p.fc1_b);
  at::Tensor activated_rd = at::gelu(hidden_rd);
  at::Tensor out_rd = linear(w, activated_rd, p.fc2_w, p.fc2_b).add_(middle_rd);
  if (tape) *tape = {x_rd, middle_rd, norm1, norm2, qkv_rd, attention, lse, hidden_rd, activated_rd};
  return out_rd;
}

at::Tensor Passes::block_backward(const FlatBuffers& w, const BlockPlaces& p, const BlockTape& t, const at::Tensor& dy_rd, int64_t b, int64_t heads,
                                  FlatBuffers& gradient) const {
  const int64_t d = dy_rd.size(1), n = dy_rd.size(0) / b;
  const at::Tensor dactivated = linear_backward(w, t.activated_rd, dy_rd, p.fc2_w, p.fc2_b, gradient, true);
  const at::Tensor dhidden = at::gelu_backward(dactivated, t.hidden_rd);
  const at::Tensor dnorm2 = linear_backward(w, t.norm2.out_rd, dhidden, p.fc1_w, p.fc1_b, gradient, true);
  const at::Tensor dmiddle = norm_backward(w, t.middle_rd, t.norm2, dnorm2, dy_rd, p.norm2_w, p.norm2_b, gradient);
  const at::Tensor joined_rd = t.attention_bhnd.transpose(1, 2).reshape({b * n, d});
  const at::Tensor djoined = linear_backward(w, joined_rd, dmiddle, p.proj_w, p.proj_b, gradient, true);
  const Heads in = split_heads(t.qkv_rd, b, heads);
  const at::Tensor dattention = djoined.view({b, n, heads, d / heads}).transpose(1, 2);
  auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(dattention, in.q, in.k, in.v, t.attention_bhnd, t.lse, 0.0, false);
  at::Tensor dqkv_rd = at::empty({b * n, 3 * d}, dy_rd.options());
  const Heads out = split_heads(dqkv_rd, b, heads);
  out.q.copy_(dq), out.k.copy_(dk), out.v.copy_(dv);
  const at::Tensor dnorm1 = linear_backward(w, t.norm1.out_rd, dqkv_rd, p.qkv_w, p.qkv_b, gradient, true);
  return norm_backward(w, t.x_rd, t.norm1, dnorm1, dmiddle, p.norm1_w, p.norm1_b, gradient);
}

}  // namespace tessera::model
