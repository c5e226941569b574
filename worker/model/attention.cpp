#include "worker/model/attention.h"

#include <algorithm>
#include <cmath>

#include "worker/model/attention_bf16.h"
#include "worker/model/attention_parts.h"

namespace tessera::model::kernels {
namespace {

// Rows of a head out of a packed matrix into [tokens, width], padded with zeros to width.
template <typename T>
TESSERA_INLINE void take(const T* from, int64_t stride, int64_t tokens, int64_t e, int64_t width, float scale, float* to) {
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t j = 0; j < width; j += kLanes) {
      Vec v;
      load(v, from + i * stride + j, e - j);
      store(to + i * width + j, v * scale);
    }
}
// The same transposed: [e, columns], sixteen tokens and channels at a time.
template <typename T>
TESSERA_INLINE void take_transposed(const T* from, int64_t stride, int64_t tokens, int64_t e, int64_t columns, float* to) {
  for (int64_t i = 0; i < columns; i += kLanes)
    for (int64_t j = 0; j < e; j += kLanes) {
      Vec block[kLanes] = {};
      for (int64_t k = 0; k < std::min(kLanes, tokens - i); ++k) load(block[k], from + (i + k) * stride + j, e - j);
      transpose(block);
      for (int64_t k = 0; k < std::min(kLanes, e - j); ++k) store(to + (j + k) * columns + i, block[k]);
    }
}
template <typename T>
TESSERA_INLINE void forward(const AttentionShape& shape, const T* qkv, int64_t first, int64_t last, T* out, float* lse, float* scratch) {
  const Sizes s(shape);
  const float scale = 1.0f / std::sqrt(float(s.e));
  float* logits = scratch;
  float* keys_t = logits + s.n * s.columns;
  float* query = keys_t + s.e * s.columns;
  float* value = query + s.n * s.width;
  float* answer = value + s.n * s.width;
  for (int64_t pair = first; pair < last; ++pair) {
    const int64_t sequence = pair / shape.heads, head = pair % shape.heads;
    const T* q = qkv + sequence * s.n * s.packed + head * s.e;
    take(q + shape.unread * s.packed, s.packed, s.m, s.e, s.width, scale, query);
    take_transposed(q + s.joined, s.packed, s.n, s.e, s.columns, keys_t);
    take(q + 2 * s.joined, s.packed, s.n, s.e, s.width, 1.0f, value);
    product<FloatTerms>(query, s.width, 1, keys_t, s.columns, logits, s.columns, s.m, s.columns, s.e);
    for (int64_t i = 0; i < s.m; ++i) {
      float* row = logits + i * s.columns;
      const float top = largest(row, s.n), sum = exponentials(row, s.n, s.columns, 1, top), inverse = 1.0f / sum;
      for (int64_t j = 0; j < s.columns; ++j) row[j] *= inverse;
      if (lse) lse[pair * s.m + i] = top + std::log(sum);
    }
    product<FloatTerms>(logits, s.columns, 1, value, s.width, answer, s.width, s.m, s.width, s.n);
    give(answer, s.width, s.m, s.e, out + sequence * s.m * s.joined + head * s.e, s.joined);
  }
}

template <typename T>
TESSERA_INLINE void backward(const AttentionShape& shape, const T* qkv, const T* out, const float* lse, const T* dout, int64_t first, int64_t last, T* dqkv, float* scratch) {
  const Sizes s(shape);
  const float scale = 1.0f / std::sqrt(float(s.e));
  float* p = scratch;
  float* dp = p + s.n * s.columns;
  float* keys_t = dp + s.n * s.columns;
  float* value_t = keys_t + s.e * s.columns;
  float* query = value_t + s.e * s.columns;
  float* key = query + s.n * s.width;
  float* grad = key + s.n * s.width;
  float* answer = grad + s.n * s.width;
  for (int64_t pair = first; pair < last; ++pair) {
    const int64_t sequence = pair / shape.heads, head = pair % shape.heads;
    const T* q = qkv + sequence * s.n * s.packed + head * s.e;
    const T* o = out + sequence * s.m * s.joined + head * s.e;
    const T* d_o = dout + sequence * s.m * s.joined + head * s.e;
    T* d_q = dqkv + sequence * s.n * s.packed + head * s.e;
    take(q + shape.unread * s.packed, s.packed, s.m, s.e, s.width, scale, query);
    take_transposed(q + s.joined, s.packed, s.n, s.e, s.columns, keys_t);
    take(q + s.joined, s.packed, s.n, s.e, s.width, scale, key);
    take_transposed(q + 2 * s.joined, s.packed, s.n, s.e, s.columns, value_t);
    take(d_o, s.joined, s.m, s.e, s.width, 1.0f, grad);
    product<FloatTerms>(query, s.width, 1, keys_t, s.columns, p, s.columns, s.m, s.columns, s.e);
    for (int64_t i = 0; i < s.m; ++i) exponentials(p + i * s.columns, s.n, s.columns, 1, lse[pair * s.m + i]);
    product<FloatTerms>(p, 1, s.columns, grad, s.width, answer, s.width, s.n, s.width, s.m);  // dV = P^T dO
    give(answer, s.width, s.n, s.e, d_q + 2 * s.joined, s.packed);
    product<FloatTerms>(grad, s.width, 1, value_t, s.columns, dp, s.columns, s.m, s.columns, s.e);  // dP = dO V^T
    for (int64_t i = 0; i < s.m; ++i) {
      const float mean = dot(d_o + i * s.joined, o + i * s.joined, s.e);  // sum_j P_ij dP_ij = dO_i . O_i
      for (int64_t j = 0; j < s.columns; ++j) dp[i * s.columns + j] = p[i * s.columns + j] * (dp[i * s.columns + j] - mean);
    }
    product<FloatTerms>(dp, s.columns, 1, key, s.width, answer, s.width, s.m, s.width, s.n);  // dQ = dS K scale
    give(answer, s.width, s.m, s.e, d_q + shape.unread * s.packed, s.packed);
    for (int64_t i = 0; i < shape.unread; ++i) std::memset(d_q + i * s.packed, 0, size_t(s.e) * sizeof(T));
    product<FloatTerms>(dp, 1, s.columns, query, s.width, answer, s.width, s.n, s.width, s.m);  // dK = dS^T Q scale
    give(answer, s.width, s.n, s.e, d_q + s.joined, s.packed);
  }
}

}  // namespace

int64_t attention_scratch_floats(const AttentionShape& shape) {
  const Sizes s(shape);
  return std::max(2 * s.n * s.columns + 2 * s.e * s.columns + 6 * s.n * s.width, bf16_attention_scratch_floats(shape));
}

namespace {

TESSERA_CLONES
void widened_forward(const AttentionShape& shape, const Half* qkv, int64_t first, int64_t last, Half* out, float* lse, float* scratch) {
  forward(shape, qkv, first, last, out, lse, scratch);
}
TESSERA_CLONES
void widened_backward(const AttentionShape& shape, const Half* qkv, const Half* out, const float* lse, const Half* dout, int64_t first, int64_t last, Half* dqkv, float* scratch) {
  backward(shape, qkv, out, lse, dout, first, last, dqkv, scratch);
}

}  // namespace

TESSERA_CLONES
void attention_forward(const AttentionShape& shape, const float* qkv, int64_t first, int64_t last, float* out, float* lse, float* scratch) {
  forward(shape, qkv, first, last, out, lse, scratch);
}
void attention_forward(const AttentionShape& shape, const Half* qkv, int64_t first, int64_t last, Half* out, float* lse, float* scratch) {
  (bf16_attention_fits(shape) ? bf16_attention_forward : widened_forward)(shape, qkv, first, last, out, lse, scratch);
}
TESSERA_CLONES
void attention_backward(const AttentionShape& shape, const float* qkv, const float* out, const float* lse, const float* dout, int64_t first, int64_t last, float* dqkv,
                        float* scratch) {
  backward(shape, qkv, out, lse, dout, first, last, dqkv, scratch);
}
void attention_backward(const AttentionShape& shape, const Half* qkv, const Half* out, const float* lse, const Half* dout, int64_t first, int64_t last, Half* dqkv,
                        float* scratch) {
  (bf16_attention_fits(shape) ? bf16_attention_backward : widened_backward)(shape, qkv, out, lse, dout, first, last, dqkv, scratch);
}

}  // namespace tessera::model::kernels
