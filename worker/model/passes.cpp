#include "worker/model/passes.h"

namespace tessera::model {

at::Tensor Ops::weight(const FlatBuffers& role, int place) const {
  const TensorPlace& p = layout_.tensors[size_t(place)];
  const at::Tensor flat = role[size_t(p.bucket)].narrow(0, p.offset, p.count);
  return p.shape.size() == 1 ? flat : flat.view({p.shape[0], p.count / p.shape[0]});
}

Joined Passes::block(const Weights& w, const BlockPlaces& p, const Joined& in, const NextNorm* next, int64_t b, int64_t heads, BlockTape* tape) const {
  at::Tensor qkv_rd = ops_->linear(w, in.norm.out_rd, p.qkv, LinearFor::kAttention);
  Attention attention = ops_->attend(qkv_rd, b, heads, tape != nullptr);
  if (!tape) qkv_rd.reset();
  const NextNorm norm2{p.norm2, NormFor::kProduct};
  Joined middle = ops_->linear_add_norm(w, attention.out_rd, p.proj, in.sum_rd, &norm2);
  if (!tape) attention.out_rd.reset();
  Hidden hidden = ops_->linear_gelu(w, middle.norm.out_rd, p.fc1);
  Joined out = ops_->linear_add_norm(w, hidden.after_rd, p.fc2, middle.sum_rd, next);
  if (tape) *tape = {in.sum_rd, middle.sum_rd, in.norm, middle.norm, qkv_rd, attention, ops_->kept(hidden)};
  return out;
}

at::Tensor Passes::block(const Weights& w, const BlockPlaces& p, const at::Tensor& x_rd, int64_t b, int64_t heads, BlockTape* tape) const {
  return block(w, p, Joined{x_rd, ops_->norm(w, x_rd, p.norm1, NormFor::kProduct)}, nullptr, b, heads, tape).sum_rd;
}

Flow Passes::block_backward(const Weights& w, const BlockPlaces& p, const BlockTape& t, const Flow& dy, int64_t b, int64_t heads, FlatBuffers& gradient) const {
  const Flow dhidden = ops_->gelu_linear_backward(w, t.hidden, dy, p.fc2, gradient);
  const at::Tensor dnorm2 = ops_->linear_backward(w, t.norm2.out_rd, dhidden, p.fc1, gradient, true);
  const Flow dmiddle = ops_->norm_backward(w, t.middle_rd, t.norm2, dnorm2, dy.full_rd, p.norm2, gradient);
  const at::Tensor djoined = ops_->linear_backward(w, t.attention.out_rd, dmiddle, p.proj, gradient, true);
  const Flow dqkv = ops_->attend_backward(t.qkv_rd, t.attention, djoined, b, heads);
  const at::Tensor dnorm1 = ops_->linear_backward(w, t.norm1.out_rd, dqkv, p.qkv, gradient, true);
  return ops_->norm_backward(w, t.x_rd, t.norm1, dnorm1, dmiddle.full_rd, p.norm1, gradient);
}

}  // namespace tessera::model
