// 8-bit floats of the fp8 target pass: E4M3 of the OCP 8-bit Floating Point Specification 1.0 (four bits of exponent, three of
// mantissa, largest 448, no infinity, NaN 0x7f), and the power of two that a tensor is divided by to fit them. A power of two
// is undone without rounding. The CPU's kernels and the GPU's compile these lines.
#pragma once

#include <cstdint>
#include <cstring>

#include "worker/optimizer/elements.h"  // TESSERA_BOTH

namespace tessera::model::e4m3 {

constexpr uint32_t kInfinity = 0x7f800000;
constexpr uint32_t kLeastNormal = 0x3c800000;  // 2^-6, as bits of a float
constexpr float kToSteps = 24576;              // 1.5 * 2^14: adding it leaves multiples of 2^-9, the distance of numbers below 2^-6
constexpr int kExponentLimit = 100;  // of a scale: it and its inverse are normal numbers

TESSERA_BOTH uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
TESSERA_BOTH float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// |x| as a whole number: ordered as absolute values are, infinity and NaN above all. Its maximum does not depend on the order.
TESSERA_BOTH uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffff; }

// The least power of two s with largest / s <= 448; 1 for a tensor of zeros, NaN for one that holds infinity or NaN.
TESSERA_BOTH float scale_of(uint32_t largest) {
  if (largest >= kInfinity) return float_of(0x7fc00000);
  if (largest == 0) return 1;
  const bool above = (largest & 0x7fffff) > 0x600000;  // 448 = 1.75 * 2^8
  int exponent = int(largest >> 23) - 127 - 8 + (above ? 1 : 0);
  exponent = exponent < -kExponentLimit ? -kExponentLimit : exponent > kExponentLimit ? kExponentLimit : exponent;
  return float_of(uint32_t(exponent + 127) << 23);
}

// The nearest number of E4M3, ties to even. |x| <= 448, or NaN.
TESSERA_BOTH float rounded(float x) {
  const uint32_t bits = bits_of(x), near = (bits + 0x7ffff + ((bits >> 20) & 1)) & 0xfff00000;
  if (x != x) return x;
  return (bits & 0x7fffffff) < kLeastNormal ? (x + kToSteps) - kToSteps : float_of(near);
}
// Its encoding. x as for rounded().
TESSERA_BOTH uint8_t encoded(float x) {
  const float value = rounded(x);
  const uint32_t bits = bits_of(value), sign = (bits_of(x) >> 24) & 0x80, size = bits & 0x7fffffff;
  if (value != value) return uint8_t(sign | 0x7f);
  if (size < kLeastNormal) return uint8_t(sign | uint32_t(float_of(size) * 512));
  return uint8_t(sign | ((size >> 20) - ((127 - 7) << 3)));
}

}  // namespace tessera::model::e4m3
