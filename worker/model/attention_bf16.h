// Attention of bfloat16 arrays on CPUs that multiply bfloat16 pairs (AVX512_BF16): the products read bfloat16 and sum in
// fp32, with the probabilities and their gradient rounded, as GPUs' fused attention does. Twice the rate of fp32.
//
// Internal to attention.cpp; arguments as there.
#pragma once

#include "worker/model/attention.h"

namespace tessera::model::kernels {

// This CPU has the instruction, and the heads an even number of channels: they are read in pairs.
bool bf16_attention_fits(const AttentionShape& shape);
int64_t bf16_attention_scratch_floats(const AttentionShape& shape);
void bf16_attention_forward(const AttentionShape& shape, const Half* qkv, int64_t first, int64_t last, Half* out, float* lse, float* scratch);
void bf16_attention_backward(const AttentionShape& shape, const Half* qkv, const Half* out, const float* lse, const Half* dout, int64_t first, int64_t last, Half* dqkv, float* scratch);

}  // namespace tessera::model::kernels
