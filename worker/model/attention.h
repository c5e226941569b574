// Self-attention of short sequences, forward and backward, by hand: softmax(Q K^T / sqrt(e)) V for every sequence and head.
// Plain float arrays, no LibTorch. General attention kernels lose most of their time here: a predictor has hundreds of
// problems of fifty tokens by sixteen channels, each too small for a library call.
//
// Source: scaled dot-product attention, Vaswani et al., "Attention is all you need", 3.2.1; the backward recomputes the
// probabilities from the log-sum-exp of each row, as FlashAttention (Dao et al., 2022, algorithm 4) does.
//
// Bits: every element is one sum in the order of its inner index, so they depend on the arguments, and on whether the CPU
// has fused multiply-add (numerics class); not on threads, vector width, or which (sequence, head) pairs a call names. In
// halves they also depend on whether it multiplies bfloat16 pairs.
#pragma once

#include <cstdint>

#include "worker/model/half.h"

namespace tessera::model::kernels {

struct AttentionShape {
  int64_t sequences;
  int64_t heads;
  int64_t tokens;    // of a sequence; at least 1
  int64_t head_dim;  // e
  int64_t unread = 0;  // leading tokens of a sequence that ask nothing: keys and values only
  int64_t queries() const { return tokens - unread; }
};

// Floats that one call wants as scratch.
int64_t attention_scratch_floats(const AttentionShape& shape);

// (sequence, head) pairs [first, last) of sequences * heads; pairs are independent: any thread.
//   qkv [sequences * tokens, 3, heads, head_dim]; out [sequences * queries, heads, head_dim];
//   lse [sequences, heads, queries] or null: log-sum-exp of the scaled logits, for the backward.
// In halves: q, k, v, the answer and their gradients are stored in bfloat16; between them softmax and all sums are computed
// in fp32, and products too, but where the CPU multiplies bfloat16 and head_dim is even: there the probabilities and their
// gradient are rounded before they are multiplied (attention_bf16.h).
void attention_forward(const AttentionShape& shape, const float* qkv, int64_t first, int64_t last, float* out, float* lse, float* scratch);
void attention_forward(const AttentionShape& shape, const Half* qkv, int64_t first, int64_t last, Half* out, float* lse, float* scratch);

// dout as out, dqkv as qkv (its parts that belong to the pairs are overwritten; queries of unread tokens with zeros).
void attention_backward(const AttentionShape& shape, const float* qkv, const float* out, const float* lse, const float* dout, int64_t first, int64_t last, float* dqkv,
                        float* scratch);
void attention_backward(const AttentionShape& shape, const Half* qkv, const Half* out, const float* lse, const Half* dout, int64_t first, int64_t last, Half* dqkv,
                        float* scratch);

}  // namespace tessera::model::kernels
