#include "worker/model/attention.h"

#include <algorithm>
#include <cmath>

#include "worker/model/lanes.h"

namespace tessera::model::kernels {
namespace {

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// C [R, 16 V] = A [R, inner] B [inner, 16 V]; A by strides, B and C by rows.
template <int R, int V>
TESSERA_INLINE void tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t inner) {
  Vec sum[R][V] = {};
  for (int64_t k = 0; k < inner; ++k) {
    Vec right[V];
    for (int v = 0; v < V; ++v) load(right[v], b + k * b_row + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const float left = a[r * a_row + k * a_column];
      for (int v = 0; v < V; ++v) sum[r][v] = sum[r][v] + left * right[v];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(c + r * c_row + v * kLanes, sum[r][v]);
}

template <int V>
TESSERA_INLINE void rows(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t count, int64_t inner) {
  constexpr int kMost = V == 1 ? 12 : 8;
  int64_t r = 0;
  for (; r + kMost <= count; r += kMost) tile<kMost, V>(a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, inner);
  for (; r + 4 <= count; r += 4) tile<4, V>(a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, inner);
  for (; r < count; ++r) tile<1, V>(a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, inner);
}

// C [count, columns] = A B, columns a multiple of 16.
TESSERA_INLINE void product(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t count, int64_t columns, int64_t inner) {
  int64_t j = 0;
  for (; j + 3 * kLanes <= columns; j += 3 * kLanes) rows<3>(a, a_row, a_column, b + j, b_row, c + j, c_row, count, inner);
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) rows<2>(a, a_row, a_column, b + j, b_row, c + j, c_row, count, inner);
  for (; j < columns; j += kLanes) rows<1>(a, a_row, a_column, b + j, b_row, c + j, c_row, count, inner);
}

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
TESSERA_INLINE void give(const float* from, int64_t width, int64_t tokens, int64_t e, T* to, int64_t stride) {
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t j = 0; j < e; j += kLanes) {
      Vec v;
      load(v, from + i * width + j);
      store(to + i * stride + j, v, e - j);
    }
}

// exp(row - shift) over the first n of `columns` values, zero behind them; returns the sum.
TESSERA_INLINE float exponentials(float* row, int64_t n, int64_t columns, float shift) {
  Vec sum{};
  for (int64_t j = 0; j < columns; j += kLanes) {
    Vec x;
    load(x, row + j);
    x = x - shift;
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
  const int64_t first = std::min(n, kLanes);
  for (int64_t j = 0; j < kLanes; ++j) lanes[j] = row[std::min(j, first - 1)];
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
    product(query, s.width, 1, keys_t, s.columns, logits, s.columns, s.m, s.columns, s.e);
    for (int64_t i = 0; i < s.m; ++i) {
      float* row = logits + i * s.columns;
      const float top = largest(row, s.n), sum = exponentials(row, s.n, s.columns, top), inverse = 1.0f / sum;
      for (int64_t j = 0; j < s.columns; ++j) row[j] *= inverse;
      if (lse) lse[pair * s.m + i] = top + std::log(sum);
    }
    product(logits, s.columns, 1, value, s.width, answer, s.width, s.m, s.width, s.n);
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
    product(query, s.width, 1, keys_t, s.columns, p, s.columns, s.m, s.columns, s.e);
    for (int64_t i = 0; i < s.m; ++i) exponentials(p + i * s.columns, s.n, s.columns, lse[pair * s.m + i]);
    product(p, 1, s.columns, grad, s.width, answer, s.width, s.n, s.width, s.m);  // dV = P^T dO
    give(answer, s.width, s.n, s.e, d_q + 2 * s.joined, s.packed);
    product(grad, s.width, 1, value_t, s.columns, dp, s.columns, s.m, s.columns, s.e);  // dP = dO V^T
    for (int64_t i = 0; i < s.m; ++i) {
      const float mean = dot(d_o + i * s.joined, o + i * s.joined, s.e);  // sum_j P_ij dP_ij = dO_i . O_i
      for (int64_t j = 0; j < s.columns; ++j) dp[i * s.columns + j] = p[i * s.columns + j] * (dp[i * s.columns + j] - mean);
    }
    product(dp, s.columns, 1, key, s.width, answer, s.width, s.m, s.width, s.n);  // dQ = dS K scale
    give(answer, s.width, s.m, s.e, d_q + shape.unread * s.packed, s.packed);
    for (int64_t i = 0; i < shape.unread; ++i) std::memset(d_q + i * s.packed, 0, size_t(s.e) * sizeof(T));
    product(dp, 1, s.columns, query, s.width, answer, s.width, s.n, s.width, s.m);  // dK = dS^T Q scale
    give(answer, s.width, s.n, s.e, d_q + s.joined, s.packed);
  }
}

}  // namespace

int64_t attention_scratch_floats(const AttentionShape& shape) {
  const Sizes s(shape);
  return 2 * s.n * s.columns + 2 * s.e * s.columns + 6 * s.n * s.width;
}

TESSERA_CLONES
void attention_forward(const AttentionShape& shape, const float* qkv, int64_t first, int64_t last, float* out, float* lse, float* scratch) {
  forward(shape, qkv, first, last, out, lse, scratch);
}
TESSERA_CLONES
void attention_forward(const AttentionShape& shape, const Half* qkv, int64_t first, int64_t last, Half* out, float* lse, float* scratch) {
  forward(shape, qkv, first, last, out, lse, scratch);
}
TESSERA_CLONES
void attention_backward(const AttentionShape& shape, const float* qkv, const float* out, const float* lse, const float* dout, int64_t first, int64_t last, float* dqkv,
                        float* scratch) {
  backward(shape, qkv, out, lse, dout, first, last, dqkv, scratch);
}
TESSERA_CLONES
void attention_backward(const AttentionShape& shape, const Half* qkv, const Half* out, const float* lse, const Half* dout, int64_t first, int64_t last, Half* dqkv,
                        float* scratch) {
  backward(shape, qkv, out, lse, dout, first, last, dqkv, scratch);
}

}  // namespace tessera::model::kernels
