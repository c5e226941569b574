// The forward and backward passes by hand: the model is fixed, so no autograd graph is built and every gradient is
// written straight into its place in a flat bucket. Legend of shape suffixes: b sequences, n tokens, r = b n rows,
// d channels, h heads.
//
// Internal to worker/model. Source: published model code as described in docs/fidelity.md; pre-norm ViT block
// (x += attn(LN1 x); x += mlp(LN2 x)), exact GELU, LayerNorm eps 1e-6.
#pragma once

#include <ATen/core/Tensor.h>
#include <string>
#include <vector>

#include "worker/model/state.h"

namespace tessera::model {

// Where a block's twelve tensors are in Layout::tensors.
struct BlockPlaces {
  int norm1_w, norm1_b, qkv_w, qkv_b, proj_w, proj_b, norm2_w, norm2_b, fc1_w, fc1_b, fc2_w, fc2_b;
};
struct Norm {
  at::Tensor out_rd, mean_r, rstd_r;
};
// What a block's backward needs of its forward.
struct BlockTape {
  at::Tensor x_rd, middle_rd;          // input, and after attention
  Norm norm1, norm2;
  at::Tensor qkv_rd, joined_rd, lse_bhn;  // joined: all heads' answers, before the projection
  at::Tensor hidden_rd, activated_rd;  // before and after GELU
};

// Weights of one network read from one role's buffers; gradients written to another's.
class Passes {
 public:
  Passes(const Layout& layout, bool bf16_linears) : layout_(layout), bf16_(bf16_linears) {}

  at::Tensor weight(const FlatBuffers& role, int place) const;
  size_t bucket_of(int place) const { return size_t(layout_.tensors[size_t(place)].bucket); }
  // y = x W^T + b. x [r, in] -> [r, out].
  at::Tensor linear(const FlatBuffers& w, const at::Tensor& x_rd, int weight_place, int bias_place) const;
  // Writes dW, db; returns dx when wanted.
  at::Tensor linear_backward(const FlatBuffers& w, const at::Tensor& x_rd, const at::Tensor& dy_rd, int weight_place, int bias_place,
                             FlatBuffers& gradient, bool want_dx) const;
  Norm norm(const FlatBuffers& w, const at::Tensor& x_rd, int weight_place, int bias_place) const;
  // dx (+ residual), dgamma, dbeta.
  at::Tensor norm_backward(const FlatBuffers& w, const at::Tensor& x_rd, const Norm& forward, const at::Tensor& dy_rd, const at::Tensor& residual_rd,
                           int weight_place, int bias_place, FlatBuffers& gradient) const;
  // One block over b sequences of n tokens. tape null: no backward will follow.
  at::Tensor block(const FlatBuffers& w, const BlockPlaces& p, const at::Tensor& x_rd, int64_t b, int64_t heads, BlockTape* tape) const;
  at::Tensor block_backward(const FlatBuffers& w, const BlockPlaces& p, const BlockTape& tape, const at::Tensor& dy_rd, int64_t b, int64_t heads,
                            FlatBuffers& gradient) const;

 private:
  const Layout& layout_;
  bool bf16_;
};

}  // namespace tessera::model
