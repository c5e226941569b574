#include "worker/model/attention_bf16.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tessera::model::kernels {

bool bf16_attention_fits(const AttentionShape& shape) {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has && shape.head_dim % 2 == 0;
#else
  (void)shape;
  return false;
#endif
}

}  // namespace tessera::model::kernels

#if defined(__x86_64__)
// Everything below is compiled for AVX-512 alone. What it includes has internal linkage: no other file can get its code.
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
#include "worker/model/attention_parts.h"

namespace tessera::model::kernels {
namespace {

// Two neighbours along the inner dimension of a product; the first in the low half.
typedef uint32_t Word __attribute__((may_alias));

// sum += left.first right.first + left.second right.second, sixteen at a time.
struct PairTerms {
  using Left = Word;
  __attribute__((always_inline)) static void add(Vec& sum, Left left, const Vec& right) {
    sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(left)), (__m512bh)right);
  }
};

TESSERA_INLINE const Word* words(const Half* from) { return reinterpret_cast<const Word*>(from); }

// The first `count` words from there (all sixteen if more), zeros behind them; as the bits of floats.
TESSERA_INLINE Vec load_words(const Half* from, int64_t count) { return (Vec)_mm512_maskz_loadu_epi32(count >= kLanes ? __mmask16(0xffff) : __mmask16((1u << count) - 1), from); }
TESSERA_INLINE __m512i load_halves(const Half* from, int64_t count) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(count >= kLanes ? __mmask16(0xffff) : __mmask16((1u << count) - 1), from));
}
TESSERA_INLINE __m512i halves_of(const Vec& v) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v)); }

// Rows [tokens, e] as [e / 2, columns] words: pairs along e for B of a product over channels.
TESSERA_INLINE void pairs_of_channels(const Half* from, int64_t stride, int64_t tokens, int64_t e, int64_t columns, float* to) {
  for (int64_t i = 0; i < columns; i += kLanes)
    for (int64_t j = 0; j < e / 2; j += kLanes) {
      Vec block[kLanes] = {};
      for (int64_t k = 0; k < kLanes && i + k < tokens; ++k) block[k] = load_words(from + (i + k) * stride + 2 * j, e / 2 - j);
      transpose(block);
      for (int64_t k = 0; k < kLanes && j + k < e / 2; ++k) store(to + (j + k) * columns + i, block[k]);
    }
}

// Rows [tokens, e] as [ceil(tokens / 2), width] words: pairs of tokens for B of a product over tokens.
TESSERA_INLINE void pairs_of_tokens(const Half* from, int64_t stride, int64_t tokens, int64_t e, int64_t width, float* to) {
  for (int64_t i = 0; i < tokens; i += 2)
    for (int64_t j = 0; j < width; j += kLanes) {
      const __m512i even = load_halves(from + i * stride + j, e - j), odd = i + 1 < tokens ? load_halves(from + (i + 1) * stride + j, e - j) : _mm512_setzero_si512();
      _mm512_storeu_si512(to + i / 2 * width + j, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

// A matrix [rows, columns] of fp32, rounded: as rows of halves, for A of a product over columns ...
TESSERA_INLINE void round_row(const float* row, int64_t columns, Half* to) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    Vec v;
    load(v, row + j);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), (__m256i)_mm512_cvtneps_pbh((__m512)v));
  }
}
// ... and as [ceil(rows / 2), columns] words, for A of a product over rows.
TESSERA_INLINE void pairs_of_rows(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t j = 0; j < columns; j += kLanes) {
      Vec even, odd{};
      load(even, from + i * columns + j);
      if (i + 1 < rows) load(odd, from + (i + 1) * columns + j);
      _mm512_storeu_si512(to + i / 2 * columns + j, _mm512_or_si512(halves_of(even), _mm512_slli_epi32(halves_of(odd), 16)));
    }
}

TESSERA_INLINE void give(const float* from, int64_t width, int64_t e, float scale, Half* to) {
  for (int64_t j = 0; j < width; j += kLanes) {
    Vec v;
    load(v, from + j);
    store(to + j, v * scale, e - j);
  }
}

struct Plan : Sizes {
  int64_t token_pairs, query_pairs, channel_pairs;
  float scale;
  explicit Plan(const AttentionShape& s) : Sizes(s), token_pairs((n + 1) / 2), query_pairs((m + 1) / 2), channel_pairs(e / 2), scale(1.0f / std::sqrt(float(e))) {}
};

}  // namespace

int64_t bf16_attention_scratch_floats(const AttentionShape& shape) {
  const Plan s(shape);
  return (2 * s.m + s.query_pairs + s.channel_pairs) * s.columns + (s.token_pairs + s.n) * s.width + s.m * s.columns / 2;  // the backward's: it wants more
}

void bf16_attention_forward(const AttentionShape& shape, const Half* qkv, int64_t first, int64_t last, Half* out, float* lse, float* scratch) {
  const Plan s(shape);
  float* p = scratch;                                  // [m, columns]
  float* keys = p + s.m * s.columns;                   // words [e / 2, columns]
  float* values = keys + s.channel_pairs * s.columns;  // words [n / 2, width]
  float* answer = values + s.token_pairs * s.width;    // [m, width]
  Half* rounded = reinterpret_cast<Half*>(answer + s.m * s.width);  // [m, columns]
  for (int64_t pair = first; pair < last; ++pair) {
    const int64_t sequence = pair / shape.heads, head = pair % shape.heads;
    const Half* q = qkv + sequence * s.n * s.packed + head * s.e;
    Half* to = out + sequence * s.m * s.joined + head * s.e;
    pairs_of_channels(q + s.joined, s.packed, s.n, s.e, s.columns, keys);
    pairs_of_tokens(q + 2 * s.joined, s.packed, s.n, s.e, s.width, values);
    product<PairTerms>(words(q + shape.unread * s.packed), s.packed / 2, 1, keys, s.columns, p, s.columns, s.m, s.columns, s.channel_pairs);
    for (int64_t i = 0; i < s.m; ++i) {
      float* row = p + i * s.columns;
      const float top = largest(row, s.n) * s.scale, sum = exponentials(row, s.n, s.columns, s.scale, top);
      round_row(row, s.columns, rounded + i * s.columns);
      row[0] = 1.0f / sum;  // the row itself is not read again
      if (lse) lse[pair * s.m + i] = top + std::log(sum);
    }
    product<PairTerms>(words(rounded), s.columns / 2, 1, values, s.width, answer, s.width, s.m, s.width, s.token_pairs);
    for (int64_t i = 0; i < s.m; ++i) give(answer + i * s.width, s.width, s.e, p[i * s.columns], to + i * s.joined);
  }
}

void bf16_attention_backward(const AttentionShape& shape, const Half* qkv, const Half* out, const float* lse, const Half* dout, int64_t first, int64_t last, Half* dqkv, float* scratch) {
  const Plan s(shape);
  float* p = scratch;                                      // [m, columns]
  float* dp = p + s.m * s.columns;                         // [m, columns]
  float* across = dp + s.m * s.columns;                    // words [m / 2, columns], of p, then of dp
  float* channels = across + s.query_pairs * s.columns;    // words [e / 2, columns], of k, then of v
  float* tokens = channels + s.channel_pairs * s.columns;  // words [n / 2, width], of what a product over tokens wants
  float* answer = tokens + s.token_pairs * s.width;        // [n, width]
  Half* rounded = reinterpret_cast<Half*>(answer + s.n * s.width);  // [m, columns]
  for (int64_t pair = first; pair < last; ++pair) {
    const int64_t sequence = pair / shape.heads, head = pair % shape.heads;
    const Half* q = qkv + sequence * s.n * s.packed + head * s.e;
    const Half *k = q + s.joined, *v = k + s.joined, *asked = q + shape.unread * s.packed;
    const Half* o = out + sequence * s.m * s.joined + head * s.e;
    const Half* d_o = dout + sequence * s.m * s.joined + head * s.e;
    Half* d_q = dqkv + sequence * s.n * s.packed + head * s.e;
    pairs_of_channels(k, s.packed, s.n, s.e, s.columns, channels);
    product<PairTerms>(words(asked), s.packed / 2, 1, channels, s.columns, p, s.columns, s.m, s.columns, s.channel_pairs);
    for (int64_t i = 0; i < s.m; ++i) exponentials(p + i * s.columns, s.n, s.columns, s.scale, lse[pair * s.m + i]);
    pairs_of_rows(p, s.m, s.columns, across);
    pairs_of_tokens(d_o, s.joined, s.m, s.e, s.width, tokens);
    product<PairTerms>(reinterpret_cast<const Word*>(across), 1, s.columns, tokens, s.width, answer, s.width, s.n, s.width, s.query_pairs);  // dV = P^T dO
    for (int64_t i = 0; i < s.n; ++i) give(answer + i * s.width, s.width, s.e, 1, d_q + 2 * s.joined + i * s.packed);
    pairs_of_channels(v, s.packed, s.n, s.e, s.columns, channels);
    product<PairTerms>(words(d_o), s.joined / 2, 1, channels, s.columns, dp, s.columns, s.m, s.columns, s.channel_pairs);  // dP = dO V^T
    for (int64_t i = 0; i < s.m; ++i) {
      const float mean = dot(d_o + i * s.joined, o + i * s.joined, s.e);  // sum_j P_ij dP_ij = dO_i . O_i
      for (int64_t j = 0; j < s.columns; ++j) dp[i * s.columns + j] = p[i * s.columns + j] * (dp[i * s.columns + j] - mean);
      round_row(dp + i * s.columns, s.columns, rounded + i * s.columns);
    }
    pairs_of_tokens(k, s.packed, s.n, s.e, s.width, tokens);
    product<PairTerms>(words(rounded), s.columns / 2, 1, tokens, s.width, answer, s.width, s.m, s.width, s.token_pairs);  // dQ = dS K scale
    for (int64_t i = 0; i < s.m; ++i) give(answer + i * s.width, s.width, s.e, s.scale, d_q + (shape.unread + i) * s.packed);
    for (int64_t i = 0; i < shape.unread; ++i) std::memset(d_q + i * s.packed, 0, size_t(s.e) * sizeof(Half));
    pairs_of_rows(dp, s.m, s.columns, across);
    pairs_of_tokens(asked, s.packed, s.m, s.e, s.width, tokens);
    product<PairTerms>(reinterpret_cast<const Word*>(across), 1, s.columns, tokens, s.width, answer, s.width, s.n, s.width, s.query_pairs);  // dK = dS^T Q scale
    for (int64_t i = 0; i < s.n; ++i) give(answer + i * s.width, s.width, s.e, s.scale, d_q + s.joined + i * s.packed);
  }
}

}  // namespace tessera::model::kernels
#pragma GCC pop_options
#else
namespace tessera::model::kernels {
int64_t bf16_attention_scratch_floats(const AttentionShape&) { return 0; }
void bf16_attention_forward(const AttentionShape&, const Half*, int64_t, int64_t, Half*, float*, float*) {}
void bf16_attention_backward(const AttentionShape&, const Half*, const Half*, const float*, const Half*, int64_t, int64_t, Half*, float*) {}
}  // namespace tessera::model::kernels
#endif
