// The forward and backward passes by hand: the model is fixed, so no autograd graph is built and every gradient is
// written straight into its place in a flat bucket. Legend of shape suffixes: b sequences, n tokens, r = b n rows,
// d channels, h heads.
//
// Internal to worker/model. Source: published model code as described in docs/fidelity.md; pre-norm ViT block
// (x += attn(LN1 x); x += mlp(LN2 x)), exact GELU, LayerNorm eps 1e-6.
#pragma once

#include <ATen/core/Tensor.h>
#include <memory>
#include <string>
#include <vector>

#include "worker/model/ops.h"

namespace tessera::model {

// Where a block's twelve tensors are in Layout::tensors.
struct BlockPlaces {
  NormPlaces norm1;
  LinearPlaces qkv, proj;
  NormPlaces norm2;
  LinearPlaces fc1, fc2;
};
// What a block's backward needs of its forward.
struct BlockTape {
  at::Tensor x_rd, middle_rd;  // input; after attention: of the tokens that are read
  Norm norm1, norm2;
  at::Tensor qkv_rd;
  Attention attention;
  Hidden hidden;
};

// A transformer block over one device's operations.
class Passes {
 public:
  explicit Passes(std::unique_ptr<Ops> ops) : ops_(std::move(ops)) {}
  // On the CPU, in fp32 or with bf16 products.
  Passes(const Layout& layout, bool bf16_linears) : ops_(make_cpu_ops(layout, bf16_linears ? "bf16" : "fp32")) {}

  const Ops& ops() const { return *ops_; }
  at::Tensor weight(const FlatBuffers& role, int place) const { return ops_->weight(role, place); }
  size_t bucket_of(int place) const { return size_t(ops_->layout().tensors[size_t(place)].bucket); }
  at::Tensor linear(const Weights& w, const at::Tensor& x_rd, int weight_place, int bias_place) const { return ops_->linear(w, x_rd, {weight_place, bias_place}, LinearFor::kStream); }
  Norm norm(const Weights& w, const at::Tensor& x_rd, int weight_place, int bias_place) const { return ops_->norm(w, x_rd, {weight_place, bias_place}, NormFor::kStream); }

  // One block, given LN1 of its input; also the norm that reads its output, if any. Its output has the tokens that are
  // read. tape null: no backward will follow.
  Joined block(const Weights& w, const BlockPlaces& p, const Joined& in, const NextNorm* next, const Sequences& s, BlockTape* tape) const;
  // The same for one block by itself.
  at::Tensor block(const Weights& w, const BlockPlaces& p, const at::Tensor& x_rd, const Sequences& s, BlockTape* tape) const;
  // dy: of the tokens that are read; returns the gradient of all.
  Flow block_backward(const Weights& w, const BlockPlaces& p, const BlockTape& tape, const Flow& dy, const Sequences& s, FlatBuffers& gradient) const;

 private:
  std::unique_ptr<Ops> ops_;
};

}  // namespace tessera::model
