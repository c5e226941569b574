// The blocks of a packed JPEG: scalar, AVX2, and AVX-512 VBMI2 code with the same results.
#include <bit>
#include <cstring>

#include "data_loader/decode/packed_jpeg.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tessera::data {
namespace {

// The three ways share what is before the values.
struct Prefix {
  unsigned rows;
  const uint8_t* masks;  // of the rows that are not all zero
};
inline Prefix read_prefix(const uint8_t* at, int16_t& prediction) {
  int difference = int8_t(at[1]);
  const unsigned rows = at[0];
  at += 2;
  if (difference == -128) [[unlikely]] {
    int16_t value;
    std::memcpy(&value, at, 2);
    difference = value, at += 2;
  }
  prediction = int16_t(prediction + difference);
  return {rows, at};
}

inline int16_t i16_at(const uint8_t* at) {
  int16_t value;
  std::memcpy(&value, at, 2);
  return value;
}

// Values of the coefficients in `mask` (bit 0: wide), to `out` unless it is nullptr; returns their end.
inline const uint8_t* scalar_values(const uint8_t* at, uint64_t mask, int16_t* out) {
  const bool wide = mask & 1;
  mask &= ~uint64_t{1};
  const uint8_t* large = at + std::popcount(mask);
  if (!out && !wide) return large;
  for (; mask; mask &= mask - 1, ++at) {
    const bool is_large = wide && *at == 0x80;
    if (out) out[std::countr_zero(mask)] = is_large ? i16_at(large) : int8_t(*at);
    if (is_large) large += 2;
  }
  return large;
}

inline const uint8_t* scalar_block(const uint8_t* at, int16_t& prediction, int16_t* out) {
  const Prefix prefix = read_prefix(at, prediction);
  at = prefix.masks;
  uint64_t mask = 0;
  for (unsigned rows = prefix.rows; rows; rows &= rows - 1) mask |= uint64_t{*at++} << (8 * std::countr_zero(rows));
  at = scalar_values(at, mask, out);
  if (out) out[0] = prediction;
  return at;
}

const uint8_t* scalar_mcu(const uint8_t* at, int blocks, const int* component, int16_t* prediction, int16_t* const* out) {
  for (int i = 0; i < blocks; ++i) at = scalar_block(at, prediction[component[i]], out ? out[i] : nullptr);
  return at;
}

#if defined(__x86_64__)

// Shuffles that put consecutive bytes where the bits of a mask are, and zeros elsewhere.
struct Spread {
  alignas(64) uint64_t of[256] = {};
  constexpr Spread() {
    for (unsigned mask = 0; mask < 256; ++mask)
      for (unsigned bit = 0, next = 0; bit < 8; ++bit) of[mask] |= uint64_t{mask >> bit & 1 ? next++ : 0x80} << (8 * bit);
  }
};
constexpr Spread kSpread;

#define TESSERA_AVX2 __attribute__((target("avx2,bmi,popcnt")))
#define TESSERA_VBMI2 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,avx2,bmi,popcnt")))

TESSERA_AVX2 inline __m128i load8(const void* at) { return _mm_loadl_epi64(static_cast<const __m128i*>(at)); }

// The masks of all eight rows of a block; advances `at`.
TESSERA_AVX2 inline uint64_t spread_rows(const uint8_t*& at, unsigned rows) {
  const uint64_t mask = uint64_t(_mm_cvtsi128_si64(_mm_shuffle_epi8(load8(at), load8(&kSpread.of[rows]))));
  at += _mm_popcnt_u32(rows);
  return mask;
}

TESSERA_AVX2 const uint8_t* avx2_mcu(const uint8_t* at, int blocks, const int* component, int16_t* prediction, int16_t* const* out) {
  for (int i = 0; i < blocks; ++i) {
    const Prefix prefix = read_prefix(at, prediction[component[i]]);
    at = prefix.masks;
    const uint64_t mask = spread_rows(at, prefix.rows);
    if (mask & 1 || !out) {
      at = scalar_values(at, mask, out ? out[i] : nullptr);
    } else {
      for (int r = 0; r < 8; ++r) {
        const uint8_t* values = at + _mm_popcnt_u64(mask & ((uint64_t{1} << (8 * r)) - 1));
        const __m128i bytes = _mm_shuffle_epi8(load8(values), load8(&kSpread.of[mask >> (8 * r) & 0xFF]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out[i] + 8 * r), _mm_cvtepi8_epi16(bytes));
      }
      at += _mm_popcnt_u64(mask);
    }
    if (out) out[i][0] = prediction[component[i]];
  }
  return at;
}

TESSERA_VBMI2 const uint8_t* avx512_mcu(const uint8_t* at, int blocks, const int* component, int16_t* prediction, int16_t* const* out) {
  for (int i = 0; i < blocks; ++i) {
    const Prefix prefix = read_prefix(at, prediction[component[i]]);
    at = prefix.masks;
    uint64_t mask = spread_rows(at, prefix.rows);
    if (!out) {
      at = scalar_values(at, mask, nullptr);
    } else {
      const uint64_t wide = mask & 1;
      mask ^= wide;
      const __m512i bytes = _mm512_maskz_expand_epi8(mask, _mm512_loadu_si512(at));
      _mm512_storeu_si512(out[i], _mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes)));
      _mm512_storeu_si512(out[i] + 32, _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(bytes, 1)));
      at += _mm_popcnt_u64(mask);
      if (wide) [[unlikely]]
        for (uint64_t large = _mm512_mask_cmpeq_epi8_mask(mask, bytes, _mm512_set1_epi8(-128)); large; large &= large - 1, at += 2) out[i][std::countr_zero(large)] = i16_at(at);
    }
    if (out) out[i][0] = prediction[component[i]];
  }
  return at;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi2");
}

#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
constexpr auto avx2_mcu = scalar_mcu, avx512_mcu = scalar_mcu;
#endif

PackedCode best_code() {
  static const PackedCode best = has_avx512() ? PackedCode::kAvx512 : has_avx2() ? PackedCode::kAvx2 : PackedCode::kScalar;
  return best;
}

}  // namespace

bool packed_code_available(PackedCode code) {
  if (code == PackedCode::kAvx512) return has_avx512();
  if (code == PackedCode::kAvx2) return has_avx2();
  return true;
}

bool PackedScan::start(const ScanLayout& layout, const PackedJpeg& packed, PackedCode code) {
  if (layout.mcu_rows != packed.mcu_rows) return false;
  layout_ = layout, packed_ = packed;
  if (code == PackedCode::kBest) code = best_code();
  code_ = code == PackedCode::kAvx512 ? avx512_mcu : code == PackedCode::kAvx2 ? avx2_mcu : scalar_mcu;
  const int64_t size = int64_t(packed.coefficients.size()), last = std::min(size, kSlack);
  tail_from_ = size - last;
  tail_.fill(0);
  if (last > 0) std::memcpy(tail_.data(), packed.coefficients.data() + tail_from_, size_t(last));
  at_ = row_end_ = 0;
  return true;
}

void PackedScan::go_to_row(int row) {
  at_ = packed_.row_start(row), row_end_ = packed_.row_start(row + 1);
  prediction_.fill(0);
}

bool PackedScan::next(int16_t* const* blocks) {
  const bool in_tail = at_ >= tail_from_;
  const uint8_t* begin = in_tail ? tail_.data() + (at_ - tail_from_) : packed_.coefficients.data() + at_;
  at_ += code_(begin, layout_.blocks, layout_.component.data(), prediction_.data(), blocks) - begin;
  return at_ <= row_end_;
}

}  // namespace tessera::data
