#include "worker/collective/fixed_point.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "common/clones.h"

namespace tessera::collective::fixed_point {
namespace {

constexpr uint32_t kInfinity = 0x7f800000;

float power_of_two(int exponent) { return std::ldexp(1.0f, exponent); }

// Magnitudes order as their bits do, NaN above Inf: a maximum of integers, which vectorises.
TESSERA_CLONES
uint32_t largest_bits(const float* g, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::bit_cast<uint32_t>(g[i]) & 0x7fffffffu);
  return most;
}

TESSERA_CLONES
void put_rounded(const float* __restrict g, int64_t n, float scale, float most, int32_t* __restrict sum) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = g[i] * scale;
    const float low = x > -most ? x : -most;  // NaN too
    sum[i] = int32_t(std::nearbyint(low < most ? low : most));
  }
}

TESSERA_CLONES
void add_rounded(const float* __restrict g, int64_t n, float scale, float most, int32_t* __restrict sum) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = g[i] * scale;
    const float low = x > -most ? x : -most;
    sum[i] = int32_t(uint32_t(sum[i]) + uint32_t(int32_t(std::nearbyint(low < most ? low : most))));
  }
}

}  // namespace

int32_t limit_of(int tiles) { return int32_t(0x7fffffff / std::max(tiles, 1)); }

float float_limit(int32_t limit) {
  const float rounded = float(limit);
  return double(rounded) > double(limit) ? std::nextafter(rounded, 0.0f) : rounded;
}

Fit add_tile(const float* g, int64_t n, int exponent, int32_t limit, bool first, int32_t* sum) {
  const float most = float_limit(limit), scale = power_of_two(exponent);
  (first ? put_rounded : add_rounded)(g, n, scale, most, sum);
  const uint32_t bits = largest_bits(g, n);
  if (bits >= kInfinity) return Fit::kNotFinite;
  return std::ldexp(double(std::bit_cast<float>(bits)), exponent) > double(most) ? Fit::kTooLarge : Fit::kFits;
}

TESSERA_CLONES
void to_floats(const int32_t* __restrict sum, int64_t n, int exponent, float* __restrict g) {
  const float scale = power_of_two(-exponent);
  for (int64_t i = 0; i < n; ++i) g[i] = float(sum[i]) * scale;
}

TESSERA_CLONES
void accumulate(int32_t* __restrict a, const int32_t* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) a[i] = int32_t(uint32_t(a[i]) + uint32_t(b[i]));
}

float largest(const float* g, int64_t n) { return std::bit_cast<float>(largest_bits(g, n)); }

int next_exponent(int now, float largest_of_sum, int tiles) {
  if (std::isinf(largest_of_sum)) return std::max(now - kRetreatBits, kLowest);
  if (std::isnan(largest_of_sum) || largest_of_sum == 0) return now;
  const int fits = first_exponent(tiles) - (std::ilogb(double(largest_of_sum)) + 1) - kRoomBits;
  return std::clamp(std::min(fits, now + kRiseBits), kLowest, kHighest);
}

}  // namespace tessera::collective::fixed_point
