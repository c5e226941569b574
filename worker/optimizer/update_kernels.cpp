#include "worker/optimizer/update_kernels.h"

#include <algorithm>
#include <cmath>

#include "common/clones.h"

namespace tessera::optimizer::kernels {

TESSERA_CLONES
void adamw(const float* __restrict g, float* __restrict p, float* __restrict m, float* __restrict v, int64_t n, const AdamW& args) {
  const AdamW a = args;
  for (int64_t i = 0; i < n; ++i) adamw_element(g[i], p[i], m[i], v[i], a);
}

TESSERA_CLONES
void ema(const float* __restrict target, const float* __restrict weights, double momentum, int64_t n, float* __restrict out) {
  const float keep = float(momentum), rest = float(1.0 - momentum);
  for (int64_t i = 0; i < n; ++i) out[i] = ema_element(target[i], weights[i], keep, rest);
}

TESSERA_CLONES
void ema_in_place(float* __restrict target, const float* __restrict weights, double momentum, int64_t n) {
  const float keep = float(momentum), rest = float(1.0 - momentum);
  for (int64_t i = 0; i < n; ++i) target[i] = ema_element(target[i], weights[i], keep, rest);
}

TESSERA_CLONES
double sum_of_squares(const float* x, int64_t n) {
  double lanes[8] = {};
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t end = std::min<int64_t>(8, n - i);
    for (int64_t lane = 0; lane < end; ++lane) lanes[lane] += double(x[i + lane]) * double(x[i + lane]);
  }
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

TESSERA_CLONES
void add(const float* __restrict a, const float* __restrict b, float* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

TESSERA_CLONES
void accumulate(float* __restrict a, const float* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[i] = a[i] + b[i];
}

}  // namespace tessera::optimizer::kernels
