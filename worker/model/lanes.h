// Sixteen floats at a time, for the CPU kernels: one AVX-512 register, two of AVX2, four of SSE. GCC's vector extension keeps
// the code portable; each kernel is compiled for three instruction sets and the program chooses when it starts.
//
// Internal to worker/model's kernels, whose files are compiled with -ffp-contract=fast and -Wno-psabi. Everything is inlined
// into the clones: a function that is not would be compiled for the oldest instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/clones.h"
#include "worker/model/half.h"

#define TESSERA_INLINE __attribute__((always_inline)) static inline

namespace tessera::model::kernels {

constexpr int64_t kLanes = 16;
typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t VecInt __attribute__((vector_size(64)));
typedef uint32_t VecBits __attribute__((vector_size(64)));
typedef uint16_t VecShort __attribute__((vector_size(32)));

TESSERA_INLINE void load(Vec& v, const float* from) { v = *reinterpret_cast<const Vec*>(from); }
TESSERA_INLINE void load(Vec& v, const Half* from) {
  VecShort halves;
  std::memcpy(&halves, from, sizeof halves);
  const VecBits bits = __builtin_convertvector(halves, VecBits) << 16;
  std::memcpy(&v, &bits, sizeof v);
}
TESSERA_INLINE void store(float* to, const Vec& v) { *reinterpret_cast<Vec*>(to) = v; }
// Rounded to nearest, ties to even; NaN stays NaN. Not AVX512_BF16's instruction, which flushes denormals.
TESSERA_INLINE void store(Half* to, const Vec& v) {
  VecBits bits;
  std::memcpy(&bits, &v, sizeof bits);
  const VecBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const VecBits chosen = (v == v) ? rounded : VecBits{} + 0x7fc0;
  const VecShort halves = __builtin_convertvector(chosen, VecShort);
  std::memcpy(to, &halves, sizeof halves);
}

// The first `count` (1 to 16) values from there, zeros behind them.
template <typename T>
TESSERA_INLINE void load(Vec& v, const T* from, int64_t count) {
  if (count >= kLanes) return load(v, from);
  T padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  load(v, padded);
}
template <typename T>
TESSERA_INLINE void store(T* to, const Vec& v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  T padded[kLanes];
  store(padded, v);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

// Rows become columns: in each of four rounds the halves of every pair of rows 2^k apart change places.
template <int kApart>
TESSERA_INLINE void exchange(Vec (&rows)[kLanes]) {
  VecInt low, high;
  for (int i = 0; i < kLanes; ++i) low[i] = i & kApart ? kLanes + i - kApart : i, high[i] = i & kApart ? kLanes + i : i + kApart;
  for (int i = 0; i < kLanes; ++i)
    if ((i & kApart) == 0) {
      const Vec a = rows[i], b = rows[i + kApart];
      rows[i] = __builtin_shuffle(a, b, low), rows[i + kApart] = __builtin_shuffle(a, b, high);
    }
}
TESSERA_INLINE void transpose(Vec (&rows)[kLanes]) { exchange<8>(rows), exchange<4>(rows), exchange<2>(rows), exchange<1>(rows); }

TESSERA_INLINE float fold(const Vec& v) {
  float eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = v[i] + v[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// e^x to about 1e-7 relative (Cephes' expf): 2^n times a polynomial on [-ln2/2, ln2/2]. Below -87: e^-87.
TESSERA_INLINE void exp_in_place(Vec& x) {
  constexpr float kLow = -87.0f, kHigh = 88.0f, kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  x = x < kLow ? Vec{} + kLow : x;
  x = x > kHigh ? Vec{} + kHigh : x;
  const Vec n = (x * 1.44269504088896341f + kRound) - kRound;
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VecInt power = (__builtin_convertvector(n, VecInt) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &power, sizeof scale);
  x = p * scale;
}

}  // namespace tessera::model::kernels
