// Gradients as integers (function.reduction: fixed32, DESIGN section 7). A tile's gradient g becomes round(g 2^e), e one
// exponent per tensor; sums of integers are exact, so any order and any ranges of tiles give the same bits. e is state: it
// follows from the gradients of earlier steps only. Plain loops over arrays, exact or rounded once per element: neither
// ISA nor slicing changes a bit.
#pragma once

#include <cstdint>

namespace tessera::collective::fixed_point {

enum class Fit {
  kFits,
  kTooLarge,   // some |g 2^e| is beyond the limit: the sum could overflow
  kNotFinite,  // some element is NaN or Inf
};

// Largest magnitude of one tile's integer, so that `tiles` of them never overflow: (2^31 - 1) / tiles.
int32_t limit_of(int tiles);
// The largest float that is no larger: float(2^31 - 1) would be 2^31.
float float_limit(int32_t limit);

// sum[i] (+)= round to nearest even of g[i] 2^e, cut off at +-limit. `first`: sum is overwritten. Whatever does not fit is
// said by the answer; the sum is then of no use.
Fit add_tile(const float* g, int64_t n, int exponent, int32_t limit, bool first, int32_t* sum);
// g[i] = float(sum[i]) 2^-e.
void to_floats(const int32_t* sum, int64_t n, int exponent, float* g);
// a[i] += b[i], modulo 2^32.
void accumulate(int32_t* a, const int32_t* b, int64_t n);

// Largest magnitude of the elements; Inf or NaN where there is one (NaN before Inf).
float largest(const float* g, int64_t n);

// Of step 0, when nothing is known: elements up to 1 fit.
constexpr int first_exponent(int tiles) {
  int exponent = 0;
  while ((int64_t{2} << exponent) <= 0x7fffffff / tiles) ++exponent;
  return exponent;
}
// The exponent of the next step, from this step's and the largest magnitude of its summed gradient. A tile may be
// kRoomBits binary orders larger than that sum before it does not fit. It falls at once and rises by at most kRiseBits a
// step. Inf (what did not fit): kRetreatBits less. NaN or zero: as it is.
int next_exponent(int now, float largest_of_sum, int tiles);

inline constexpr int kRoomBits = 4, kRiseBits = 2, kRetreatBits = 8, kLowest = -60, kHighest = 100;

}  // namespace tessera::collective::fixed_point
