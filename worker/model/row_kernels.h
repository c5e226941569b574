// CPU kernels over the rows of activations, forward and backward, each doing in one pass what stands together in a block:
// a product's bias with what reads it, the residual sum with the LayerNorm after it, GELU's derivative with the bias gradient, a gradient with its bfloat16 twin.
// Plain arrays in fp32 or bfloat16, arithmetic in fp32, no LibTorch.
//
// Bits depend on the arguments and on whether the CPU has fused multiply-add (numerics class); not on threads or vector
// width. Sums over rows run over fixed chunks of kRowsPerChunk, added in chunk order.
#pragma once

#include <cstdint>

#include "worker/model/half.h"
#include "worker/model/kernels.h"

namespace tessera::model::kernels {

// An array in one of the two types; the other pointer is null.
template <typename FloatPointer, typename HalfPointer>
struct Either {
  FloatPointer full = nullptr;
  HalfPointer half = nullptr;
};
using In = Either<const float*, const Half*>;
using Out = Either<float*, Half*>;

// sum = residual + (added + bias); out = (sum - mean) rstd gamma + beta over each row, biased variance.
struct NormRows {
  const float* residual;  // [rows, d]; without `added` it is the sum itself
  In added;               // [rows, d]; both null: nothing is added
  const float* bias;      // [d], of the product that `added` is
  float* sum;             // [rows, d], may be `residual` or added.full; written when something is added
  const float* gamma;     // [d]
  const float* beta;      // [d]
  float eps;
  int64_t rows, d;
  Out out;                // [rows, d]; both null: no norm, only the sum
  float* mean;            // [rows]
  float* rstd;            // [rows]
};
// Rows [first, last); any thread.
void norm_rows(const NormRows& args, int64_t first, int64_t last);

// y = (x - mean) rstd gamma + beta backwards.
struct NormBackward {
  const float* x;         // [rows, d]
  In dy;                  // [rows, d]
  const float* mean;      // [rows]
  const float* rstd;      // [rows]
  const float* gamma;     // [d]
  const float* residual;  // [rows, d] or null: added to dx (the skip connection)
  int64_t rows, d;
  float* dx;              // [rows, d], may be residual itself
  Half* dx_half;          // [rows, d] or null: dx once more, rounded
  float* scratch;         // 3 d * chunk_count(rows)
};
// Rows of chunks [first, last) and their partial sums. Chunks are independent: any thread.
void norm_backward_chunks(const NormBackward& args, int64_t first, int64_t last);
// Adds the partial sums in chunk order: dgamma, dbeta, and the sum of dx over its rows (what the linear layer before
// wants as its bias gradient), each [d].
void norm_backward_finish(const NormBackward& args, float* dgamma, float* dbeta, float* dx_sum);

// Exact GELU, x Phi(x), x = before + bias. erf by Abramowitz and Stegun 7.1.26 (error below 1.5e-7), which is what LibTorch's
// vectorised erf is too.
struct Gelu {
  In before;          // [rows, d]
  const float* bias;  // [d]
  int64_t d;
  Out after;          // [rows, d]
};
// Rows [first, last); any thread.
void gelu(const Gelu& args, int64_t first, int64_t last);

struct GeluBackward {
  In dafter;          // [rows, d]
  In before;          // [rows, d]
  const float* bias;  // [d]
  int64_t rows, d;
  Out dbefore;        // [rows, d], may be dafter itself
  float* scratch;     // d * chunk_count(rows)
};
void gelu_backward_chunks(const GeluBackward& args, int64_t first, int64_t last);

// The sums over rows of a gradient, and its rounding.
struct SumRows {
  In from;         // [rows, d]
  int64_t rows, d;
  Half* half;      // [rows, d] or null: the rounded copy
  float* scratch;  // d * chunk_count(rows)
};
void sum_rows_chunks(const SumRows& args, int64_t first, int64_t last);

// Adds [chunks, d] partial sums in chunk order into out [d].
void add_chunks(const float* scratch, int64_t chunks, int64_t d, float* out);

// out[i] = from[i], rounded, for elements [first, last).
void round_to_half(const float* from, Half* out, int64_t first, int64_t last);

// The largest magnitude (e4m3.h) among elements [first, last).
uint32_t largest_magnitude(In from, int64_t first, int64_t last);
// out[i] = from[i] as E4M3 numbers times `scale` (e4m3.h: scale_of the array's largest magnitude) hold it: exact in bfloat16,
// so that a product of bfloat16 with fp32 sums is one of 8-bit floats.
void round_to_e4m3(In from, float scale, Half* out, int64_t first, int64_t last);

}  // namespace tessera::model::kernels
