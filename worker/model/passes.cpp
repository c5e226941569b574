#include "worker/model/passes.h"

#include <ATen/ops/zeros.h>

namespace tessera::model {

at::Tensor Ops::weight(const FlatBuffers& role, int place) const {
  const TensorPlace& p = layout_.tensors[size_t(place)];
  const at::Tensor flat = role[size_t(p.bucket)].narrow(0, p.offset, p.count);
  return p.shape.size() == 1 ? flat : flat.view({p.shape[0], p.count / p.shape[0]});
}

at::Tensor read_rows(const at::Tensor& all_rd, const Sequences& s) {
  if (s.unread == 0) return all_rd;
  const int64_t n = all_rd.size(0) / s.count, d = all_rd.size(1);
  return all_rd.view({s.count, n, d}).narrow(1, s.unread, n - s.unread).reshape({s.count * (n - s.unread), d});
}

at::Tensor with_unread(const at::Tensor& read_rd, const Sequences& s) {
  if (s.unread == 0) return read_rd;
  const int64_t read = read_rd.size(0) / s.count, d = read_rd.size(1);
  at::Tensor all = at::zeros({s.count, s.unread + read, d}, read_rd.options());
  all.narrow(1, s.unread, read).copy_(read_rd.view({s.count, read, d}));
  return all.view({-1, d});
}

Joined Passes::block(const Weights& w, const BlockPlaces& p, const Joined& in, const NextNorm* next, const Sequences& s, BlockTape* tape) const {
  at::Tensor qkv_rd = ops_->linear(w, in.norm.out_rd, p.qkv, LinearFor::kAttention);
  Attention attention = ops_->attend(qkv_rd, s, tape != nullptr);
  if (!tape) qkv_rd.reset();
  const NextNorm norm2{p.norm2, NormFor::kProduct};
  Joined middle = ops_->linear_add_norm(w, attention.out_rd, p.proj, read_rows(in.sum_rd, s), &norm2);
  if (!tape) attention.out_rd.reset();
  Hidden hidden = ops_->linear_gelu(w, middle.norm.out_rd, p.fc1);
  Joined out = ops_->linear_add_norm(w, hidden.after_rd, p.fc2, middle.sum_rd, next);
  if (tape) *tape = {in.sum_rd, middle.sum_rd, in.norm, middle.norm, qkv_rd, attention, ops_->kept(hidden)};
  return out;
}

at::Tensor Passes::block(const Weights& w, const BlockPlaces& p, const at::Tensor& x_rd, const Sequences& s, BlockTape* tape) const {
  return block(w, p, Joined{x_rd, ops_->norm(w, x_rd, p.norm1, NormFor::kProduct)}, nullptr, s, tape).sum_rd;
}

Flow Passes::block_backward(const Weights& w, const BlockPlaces& p, const BlockTape& t, const Flow& dy, const Sequences& s, FlatBuffers& gradient) const {
  const Flow dhidden = ops_->gelu_linear_backward(w, t.hidden, dy, p.fc2, gradient);
  const at::Tensor dnorm2 = ops_->linear_backward(w, t.norm2.out_rd, dhidden, p.fc1, gradient, true);
  const Flow dmiddle = ops_->norm_backward(w, t.middle_rd, t.norm2, dnorm2, dy.full_rd, p.norm2, gradient);
  const at::Tensor djoined = ops_->linear_backward(w, t.attention.out_rd, dmiddle, p.proj, gradient, true);
  const Flow dqkv = ops_->attend_backward(t.qkv_rd, t.attention, djoined, s);
  const at::Tensor dnorm1 = ops_->linear_backward(w, t.norm1.out_rd, dqkv, p.qkv, gradient, true);
  return ops_->norm_backward(w, t.x_rd, t.norm1, dnorm1, with_unread(dmiddle.full_rd, s), p.norm1, gradient);
}

}  // namespace tessera::model
