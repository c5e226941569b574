// What the two files of attention share: small products, softmax, rows to and from packed matrices. Everything is inlined
// into kernels that are compiled for several instruction sets (lanes.h).
//
// Internal to worker/model/attention*.cpp.
#pragma once

#include "worker/model/attention.h"
#include "worker/model/lanes.h"

namespace tessera::model::kernels {
namespace {  // each file has its own, compiled for its own instruction sets

TESSERA_INLINE int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// sum += left right, left a scalar: what a small product is made of.
struct FloatTerms {
  using Left = float;
  __attribute__((always_inline)) static void add(Vec& sum, Left left, const Vec& right) { sum = sum + left * right; }
};

// C [R, 16 V] = A [R, inner] B [inner, 16 V]; A by strides, B and C by rows.
template <typename Terms, int R, int V>
TESSERA_INLINE void tile(const typename Terms::Left* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t inner) {
  Vec sum[R][V] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vec right[V];
    for (int v = 0; v < V; ++v) load(right[v], b + k * b_row + v * kLanes);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) Terms::add(sum[r][v], a[r * a_row + k * a_column], right[v]);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(c + r * c_row + v * kLanes, sum[r][v]);
}

template <typename Terms, int V>
TESSERA_INLINE void rows(const typename Terms::Left* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t count, int64_t inner) {
  constexpr int kMost = V == 1 ? 12 : 8;
  int64_t r = 0;
  for (; r + kMost <= count; r += kMost) tile<Terms, kMost, V>(a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, inner);
  for (; r + 4 <= count; r += 4) tile<Terms, 4, V>(a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, inner);
  for (; r < count; ++r) tile<Terms, 1, V>(a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, inner);
}

// C [count, columns] = A B, columns a multiple of 16.
template <typename Terms>
TESSERA_INLINE void product(const typename Terms::Left* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t count, int64_t columns, int64_t inner) {
  int64_t j = 0;
  for (; j + 3 * kLanes <= columns; j += 3 * kLanes) rows<Terms, 3>(a, a_row, a_column, b + j, b_row, c + j, c_row, count, inner);
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) rows<Terms, 2>(a, a_row, a_column, b + j, b_row, c + j, c_row, count, inner);
  for (; j < columns; j += kLanes) rows<Terms, 1>(a, a_row, a_column, b + j, b_row, c + j, c_row, count, inner);
}

template <typename T>
TESSERA_INLINE void give(const float* from, int64_t width, int64_t tokens, int64_t e, T* to, int64_t stride) {
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t j = 0; j < e; j += kLanes) {
      Vec v;
      load(v, from + i * width + j);
      store(to + i * stride + j, v, e - j);
    }
}

// exp(scale row - shift) over the first n of `columns` values, zero behind them; returns the sum.
TESSERA_INLINE float exponentials(float* row, int64_t n, int64_t columns, float scale, float shift) {
  Vec sum{};
  for (int64_t j = 0; j < columns; j += kLanes) {
    Vec x;
    load(x, row + j);
    x = x * scale - shift;
    exp_in_place(x);
    store(row + j, x);
    if (j + kLanes > n) {
      for (int64_t i = n; i < j + kLanes; ++i) row[i] = 0;
      load(x, row + j);
    }
    sum = sum + x;
  }
  return fold(sum);
}

TESSERA_INLINE float largest(const float* row, int64_t n) {
  float lanes[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) lanes[j] = row[j < n ? j : 0];
  int64_t j = kLanes;
  for (; j + kLanes <= n; j += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = row[j + lane] > lanes[lane] ? row[j + lane] : lanes[lane];
  for (; j < n; ++j) lanes[0] = row[j] > lanes[0] ? row[j] : lanes[0];
  float out = lanes[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) out = lanes[lane] > out ? lanes[lane] : out;
  return out;
}

template <typename T>
TESSERA_INLINE float dot(const T* a, const T* b, int64_t count) {
  Vec sum{};
  for (int64_t j = 0; j < count; j += kLanes) {
    Vec left, right;
    load(left, a + j, count - j), load(right, b + j, count - j);
    sum = sum + left * right;
  }
  return fold(sum);
}

struct Sizes {
  int64_t n, m, e, columns, width, packed, joined;  // m queries, of tokens n - m to n
  explicit Sizes(const AttentionShape& s)
      : n(s.tokens), m(s.queries()), e(s.head_dim), columns(padded(s.tokens)), width(padded(s.head_dim)), packed(3 * s.heads * s.head_dim), joined(s.heads * s.head_dim) {}
};

}  // namespace
}  // namespace tessera::model::kernels
