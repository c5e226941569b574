#include "worker/model/row_kernels.h"

#include <algorithm>
#include <cmath>

#include "worker/model/e4m3.h"
#include "worker/model/lanes.h"

namespace tessera::model::kernels {
namespace {

// One row's statistics from the row itself, twice over: it is in the first-level cache.
TESSERA_INLINE void statistics(const float* row, int64_t d, float eps, float& mean, float& rstd) {
  Vec sum{}, x;
  for (int64_t j = 0; j < d; j += kLanes) load(x, row + j, d - j), sum = sum + x;
  mean = fold(sum) / float(d);
  Vec square{};
  for (int64_t j = 0; j < d; j += kLanes) {
    load(x, row + j, d - j);
    x = x - mean;
    if (d - j < kLanes)
      for (int64_t i = d - j; i < kLanes; ++i) x[i] = 0;
    square = square + x * x;
  }
  rstd = 1.0f / std::sqrt(fold(square) / float(d) + eps);
}

template <typename T>
TESSERA_INLINE void add_row(const float* residual, const T* added, const float* bias, int64_t d, float* sum) {
  for (int64_t j = 0; j < d; j += kLanes) {
    Vec a, b, c;
    load(a, residual + j, d - j), load(b, added + j, d - j), load(c, bias + j, d - j);
    store(sum + j, a + (b + c), d - j);
  }
}

template <typename T>
TESSERA_INLINE void normalise(const float* row, const NormRows& a, float mean, float rstd, T* out) {
  for (int64_t j = 0; j < a.d; j += kLanes) {
    Vec x, gamma, beta;
    load(x, row + j, a.d - j), load(gamma, a.gamma + j, a.d - j), load(beta, a.beta + j, a.d - j);
    store(out + j, (x - mean) * rstd * gamma + beta, a.d - j);
  }
}

template <typename T>
TESSERA_INLINE void norm_backward_row(const NormBackward& a, const T* dy, int64_t row, float* dgamma, float* dbeta, float* dx_sum) {
  const int64_t d = a.d, at = row * d;
  const float mean = a.mean[row], rstd = a.rstd[row];
  Vec x, grad, gamma, sum, sum_g{}, sum_gx{};
  for (int64_t j = 0; j < d; j += kLanes) {
    load(x, a.x + at + j, d - j), load(grad, dy + at + j, d - j), load(gamma, a.gamma + j, d - j);
    const Vec normed = (x - mean) * rstd, weighted = grad * gamma;  // beyond d: grad is zero
    load(sum, dgamma + j, d - j), store(dgamma + j, sum + grad * normed, d - j);
    load(sum, dbeta + j, d - j), store(dbeta + j, sum + grad, d - j);
    sum_g = sum_g + weighted, sum_gx = sum_gx + weighted * normed;
  }
  const float mean_g = fold(sum_g) / float(d), mean_gx = fold(sum_gx) / float(d);
  for (int64_t j = 0; j < d; j += kLanes) {
    load(x, a.x + at + j, d - j), load(grad, dy + at + j, d - j), load(gamma, a.gamma + j, d - j);
    const Vec normed = (x - mean) * rstd;
    Vec dx = rstd * ((grad * gamma - mean_g) - normed * mean_gx);
    if (a.residual) {
      load(sum, a.residual + at + j, d - j);
      dx = sum + dx;
    }
    store(a.dx + at + j, dx, d - j);
    if (a.dx_half) store(a.dx_half + at + j, dx, d - j);
    load(sum, dx_sum + j, d - j), store(dx_sum + j, sum + dx, d - j);
  }
}

// Phi(x) and e^(-x^2/2) / sqrt(2 pi) share their exponential.
TESSERA_INLINE void normal(const Vec& x, Vec& cdf, Vec& pdf) {
  const Vec z = (x < 0 ? -x : x) * 0.70710678118654752f;
  const Vec t = 1.0f / (1.0f + 0.3275911f * z);
  Vec e = -z * z;
  exp_in_place(e);
  Vec p = 1.061405429f * t + -1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t + -0.284496736f;
  p = p * t + 0.254829592f;
  const Vec tail = 0.5f * (p * t * e);
  cdf = x < 0 ? tail : 1.0f - tail;
  pdf = e * 0.39894228040143268f;
}

template <typename T>
TESSERA_INLINE void gelu_row(const T* before, const float* bias, int64_t d, T* after) {
  for (int64_t j = 0; j < d; j += kLanes) {
    Vec x, b, cdf, pdf;
    load(x, before + j, d - j), load(b, bias + j, d - j);
    x = x + b;
    normal(x, cdf, pdf);
    store(after + j, x * cdf, d - j);
  }
}

// For every chunk: its sums zeroed, then `add(row, sums)` for its rows.
template <typename Row>
TESSERA_INLINE void for_chunks(int64_t first, int64_t last, int64_t rows, float* scratch, int64_t width, Row add) {
  for (int64_t chunk = first; chunk < last; ++chunk) {
    float* sums = scratch + chunk * width;
    std::memset(sums, 0, size_t(width) * sizeof(float));
    const int64_t end = std::min(rows, (chunk + 1) * kRowsPerChunk);
    for (int64_t row = chunk * kRowsPerChunk; row < end; ++row) add(row, sums);
  }
}

template <typename T>
TESSERA_INLINE void gelu_backward_row(const T* dafter, const T* before, const float* bias, T* dbefore, int64_t d, float* sums) {
  for (int64_t j = 0; j < d; j += kLanes) {
    Vec x, b, grad, cdf, pdf, sum;
    load(x, before + j, d - j), load(b, bias + j, d - j), load(grad, dafter + j, d - j);
    x = x + b;
    normal(x, cdf, pdf);
    grad = grad * (cdf + x * pdf);
    store(dbefore + j, grad, d - j);
    load(sum, sums + j, d - j), store(sums + j, sum + grad, d - j);
  }
}

template <typename T>
TESSERA_INLINE void sum_row(const T* from, int64_t d, Half* half, float* sums) {
  for (int64_t j = 0; j < d; j += kLanes) {
    Vec x, sum;
    load(x, from + j, d - j);
    if (half) store(half + j, x, d - j);
    load(sum, sums + j, d - j), store(sums + j, sum + x, d - j);
  }
}

template <typename T>
TESSERA_INLINE uint32_t largest_of(const T* from, int64_t first, int64_t last) {
  VecBits most{};
  for (int64_t i = first; i < last; i += kLanes) {
    Vec x;
    load(x, from + i, last - i);
    VecBits bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  uint32_t largest = 0;
  for (int64_t i = 0; i < kLanes; ++i) largest = std::max(largest, uint32_t(most[i]));
  return largest;
}

// e4m3::rounded(), sixteen at a time.
TESSERA_INLINE void round_e4m3(Vec& x) {
  VecBits bits;
  std::memcpy(&bits, &x, sizeof bits);
  const VecBits near = (bits + 0x7ffff + ((bits >> 20) & 1)) & 0xfff00000;
  Vec normal;
  std::memcpy(&normal, &near, sizeof normal);
  const Vec small = (x + e4m3::kToSteps) - e4m3::kToSteps;
  const Vec chosen = (bits & 0x7fffffff) < e4m3::kLeastNormal ? small : normal;
  x = (x == x) ? chosen : x;
}

template <typename T>
TESSERA_INLINE void round_all_e4m3(const T* from, float scale, Half* out, int64_t first, int64_t last) {
  const float inverse = 1.0f / scale;
  for (int64_t i = first; i < last; i += kLanes) {
    Vec x;
    load(x, from + i, last - i);
    x = x * inverse;
    round_e4m3(x);
    store(out + i, x * scale, last - i);
  }
}

}  // namespace

TESSERA_CLONES
void norm_rows(const NormRows& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * a.d;
    const float* sum = a.residual + at;
    if (a.added.full || a.added.half) {
      if (a.added.full) add_row(a.residual + at, a.added.full + at, a.bias, a.d, a.sum + at);
      else add_row(a.residual + at, a.added.half + at, a.bias, a.d, a.sum + at);
      sum = a.sum + at;
    }
    if (!a.out.full && !a.out.half) continue;
    float mean, rstd;
    statistics(sum, a.d, a.eps, mean, rstd);
    a.mean[row] = mean, a.rstd[row] = rstd;
    if (a.out.full) normalise(sum, a, mean, rstd, a.out.full + at);
    else normalise(sum, a, mean, rstd, a.out.half + at);
  }
}

TESSERA_CLONES
void norm_backward_chunks(const NormBackward& a, int64_t first, int64_t last) {
  if (a.dy.full)
    for_chunks(first, last, a.rows, a.scratch, 3 * a.d, [&](int64_t row, float* sums) __attribute__((always_inline)) { norm_backward_row(a, a.dy.full, row, sums, sums + a.d, sums + 2 * a.d); });
  else
    for_chunks(first, last, a.rows, a.scratch, 3 * a.d, [&](int64_t row, float* sums) __attribute__((always_inline)) { norm_backward_row(a, a.dy.half, row, sums, sums + a.d, sums + 2 * a.d); });
}

TESSERA_CLONES
void norm_backward_finish(const NormBackward& a, float* dgamma, float* dbeta, float* dx_sum) {
  float* out[3] = {dgamma, dbeta, dx_sum};
  for (int part = 0; part < 3; ++part) {
    std::memset(out[part], 0, size_t(a.d) * sizeof(float));
    for (int64_t chunk = 0; chunk < chunk_count(a.rows); ++chunk) {
      const float* sums = a.scratch + (3 * chunk + part) * a.d;
      for (int64_t j = 0; j < a.d; ++j) out[part][j] += sums[j];
    }
  }
}

TESSERA_CLONES
void gelu(const Gelu& a, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * a.d;
    if (a.before.full) gelu_row(a.before.full + at, a.bias, a.d, a.after.full + at);
    else gelu_row(a.before.half + at, a.bias, a.d, a.after.half + at);
  }
}

TESSERA_CLONES
void gelu_backward_chunks(const GeluBackward& a, int64_t first, int64_t last) {
  if (a.before.full)
    for_chunks(first, last, a.rows, a.scratch, a.d, [&](int64_t row, float* sums) __attribute__((always_inline)) { gelu_backward_row(a.dafter.full + row * a.d, a.before.full + row * a.d, a.bias, a.dbefore.full + row * a.d, a.d, sums); });
  else
    for_chunks(first, last, a.rows, a.scratch, a.d, [&](int64_t row, float* sums) __attribute__((always_inline)) { gelu_backward_row(a.dafter.half + row * a.d, a.before.half + row * a.d, a.bias, a.dbefore.half + row * a.d, a.d, sums); });
}

TESSERA_CLONES
void sum_rows_chunks(const SumRows& a, int64_t first, int64_t last) {
  if (a.from.full)
    for_chunks(first, last, a.rows, a.scratch, a.d, [&](int64_t row, float* sums) __attribute__((always_inline)) { sum_row(a.from.full + row * a.d, a.d, a.half ? a.half + row * a.d : nullptr, sums); });
  else
    for_chunks(first, last, a.rows, a.scratch, a.d, [&](int64_t row, float* sums) __attribute__((always_inline)) { sum_row(a.from.half + row * a.d, a.d, nullptr, sums); });
}

TESSERA_CLONES
void add_chunks(const float* scratch, int64_t chunks, int64_t d, float* out) {
  std::memset(out, 0, size_t(d) * sizeof(float));
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t j = 0; j < d; ++j) out[j] += scratch[chunk * d + j];
}

TESSERA_CLONES
void round_to_half(const float* from, Half* out, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += kLanes) {
    Vec x;
    load(x, from + i, last - i);
    store(out + i, x, last - i);
  }
}

TESSERA_CLONES
uint32_t largest_magnitude(In from, int64_t first, int64_t last) {
  return from.full ? largest_of(from.full, first, last) : largest_of(from.half, first, last);
}

TESSERA_CLONES
void round_to_e4m3(In from, float scale, Half* out, int64_t first, int64_t last) {
  if (from.full) round_all_e4m3(from.full, scale, out, first, last);
  else round_all_e4m3(from.half, scale, out, first, last);
}

}  // namespace tessera::model::kernels
