// resize_avx2.cpp's arithmetic with 512-bit registers and the VNNI multiply-add: eight rows at a time across, sixteen pixels
// down; masks instead of spills. The same bytes.
#include <algorithm>
#include <cstring>

#include "data_loader/transform/resize.h"
#include "data_loader/transform/resize_passes.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace tessera::data {
namespace {

constexpr int kBits = 22, kRows = 8;
#define TESSERA_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))

TESSERA_AVX512 inline __m512i four_rows(const uint8_t* const* row, int64_t at) {
  const auto load = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[r] + at)); };
  __m512i out = _mm512_castsi128_si512(load(0));
  out = _mm512_inserti32x4(out, load(1), 1);
  out = _mm512_inserti32x4(out, load(2), 2);
  return _mm512_inserti32x4(out, load(3), 3);
}

TESSERA_AVX512 inline __m512i combine(__m512i high, __m512i low) { return _mm512_srai_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 12), low), kBits); }

// Output pixel x of eight rows: lane j holds those of rows j and j + 4 as its first two pixels.
TESSERA_AVX512 inline __m512i horizontal_pixel(const uint8_t* const row[kRows], const ResizeScratch::Weights& w, int x) {
  const __m512i pair01 = _mm512_broadcast_i32x4(_mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1));
  const __m512i pair23 = _mm512_broadcast_i32x4(_mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1));
  const int32_t* split = w.split.data() + size_t(x) * size_t(w.taps);
  const int64_t at = int64_t{w.first[size_t(x)]} * 4;
  const int count = w.count[size_t(x)];
  __m512i high_a = _mm512_setzero_si512(), high_b = high_a, low_a = _mm512_set1_epi32(1 << (kBits - 1)), low_b = low_a;
  for (int i = 0; i < count; i += 4) {
    const __m512i a = four_rows(row, at + i * 4), b = four_rows(row + 4, at + i * 4);
    const __m512i h01 = _mm512_set1_epi32(split[i]), l01 = _mm512_set1_epi32(split[i + 1]);
    const __m512i h23 = _mm512_set1_epi32(split[i + 2]), l23 = _mm512_set1_epi32(split[i + 3]);
    const __m512i a01 = _mm512_shuffle_epi8(a, pair01), a23 = _mm512_shuffle_epi8(a, pair23);
    const __m512i b01 = _mm512_shuffle_epi8(b, pair01), b23 = _mm512_shuffle_epi8(b, pair23);
    high_a = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(high_a, a01, h01), a23, h23);
    low_a = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(low_a, a01, l01), a23, l23);
    high_b = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(high_b, b01, h01), b23, h23);
    low_b = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(low_b, b01, l01), b23, l23);
  }
  const __m512i words = _mm512_packs_epi32(combine(high_a, low_a), combine(high_b, low_b));
  return _mm512_packus_epi16(words, words);
}

TESSERA_AVX512 inline __m128i lane(__m512i v, int j) {
  switch (j) {
    case 0: return _mm512_castsi512_si128(v);
    case 1: return _mm512_extracti32x4_epi32(v, 1);
    case 2: return _mm512_extracti32x4_epi32(v, 2);
    default: return _mm512_extracti32x4_epi32(v, 3);
  }
}

// Eight rows of the input to eight rows of the output, kPixelBytes (3 or 4) a pixel, four pixels at a time.
template <int kPixelBytes>
TESSERA_AVX512 void horizontal_rows(const uint8_t* const row[kRows], const ResizeScratch::Weights& w, uint8_t* const out[kRows]) {
  const __m128i drop_x = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  for (int x = 0; x < w.out; x += 4) {
    const int left = std::min(4, w.out - x);
    __m512i pixel[4];
    for (int i = 0; i < 4; ++i) pixel[i] = horizontal_pixel(row, w, std::min(x + i, w.out - 1));
    const __m512i first = _mm512_unpacklo_epi32(pixel[0], pixel[1]), second = _mm512_unpacklo_epi32(pixel[2], pixel[3]);
    const __m512i upper = _mm512_unpacklo_epi64(first, second), lower = _mm512_unpackhi_epi64(first, second);
    const auto mask = __mmask16((1u << (left * kPixelBytes)) - 1);
    for (int j = 0; j < 4; ++j) {
      __m128i a = lane(upper, j), b = lane(lower, j);
      if (kPixelBytes == 3) a = _mm_shuffle_epi8(a, drop_x), b = _mm_shuffle_epi8(b, drop_x);
      _mm_mask_storeu_epi8(out[j] + x * kPixelBytes, mask, a);
      _mm_mask_storeu_epi8(out[j + 4] + x * kPixelBytes, mask, b);
    }
  }
}

// One row of the output from `count` rows of `width` 4-byte pixels; writes kPixelBytes (3 or 4) a pixel and nothing beyond.
template <int kPixelBytes>
TESSERA_AVX512 void vertical_row(const uint8_t* in, int64_t row_bytes, int width, const int32_t* split, int count, uint8_t* out) {
  alignas(64) static constexpr uint8_t kDropX[64] = {0,  1,  2,  4,  5,  6,  8,  9,  10, 12, 13, 14, 16, 17, 18, 20, 21, 22, 24, 25, 26, 28, 29, 30,
                                                     32, 33, 34, 36, 37, 38, 40, 41, 42, 44, 45, 46, 48, 49, 50, 52, 53, 54, 56, 57, 58, 60, 61, 62};
  const __m512i zero = _mm512_setzero_si512(), rounding = _mm512_set1_epi32(1 << (kBits - 1)), drop_x = _mm512_load_si512(kDropX);
  for (int x = 0; x < width; x += 16) {
    const int left = std::min(16, width - x);
    const auto pixels = __mmask16((1u << left) - 1);
    __m512i high[4] = {zero, zero, zero, zero}, low[4] = {rounding, rounding, rounding, rounding};
    for (int i = 0; i < count; i += 2) {
      const uint8_t* first_row = in + i * row_bytes + x * 4;
      const uint8_t* second_row = i + 1 < count ? first_row + row_bytes : first_row;  // its weight is then zero
      const __m512i p = _mm512_maskz_loadu_epi32(pixels, first_row), q = _mm512_maskz_loadu_epi32(pixels, second_row);
      const __m512i first = _mm512_unpacklo_epi8(p, q), second = _mm512_unpackhi_epi8(p, q);
      const __m512i h = _mm512_set1_epi32(split[i]), l = _mm512_set1_epi32(split[i + 1]);
      const __m512i pairs[4] = {_mm512_unpacklo_epi8(first, zero), _mm512_unpackhi_epi8(first, zero), _mm512_unpacklo_epi8(second, zero),
                                _mm512_unpackhi_epi8(second, zero)};
      for (int j = 0; j < 4; ++j) high[j] = _mm512_dpwssd_epi32(high[j], pairs[j], h), low[j] = _mm512_dpwssd_epi32(low[j], pairs[j], l);
    }
    __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(combine(high[0], low[0]), combine(high[1], low[1])),
                                        _mm512_packs_epi32(combine(high[2], low[2]), combine(high[3], low[3])));
    if (kPixelBytes == 3) bytes = _mm512_permutexvar_epi8(drop_x, bytes);
    const int written = left * kPixelBytes;
    _mm512_mask_storeu_epi8(out + x * kPixelBytes, written == 64 ? ~__mmask64{0} : (__mmask64{1} << written) - 1, bytes);
  }
}

void horizontal_first(const uint8_t* rgbx, int64_t row_bytes, int in_height, int size, ResizeScratch& s, uint8_t* out) {
  const int64_t between_row = int64_t{size} * 4;
  reserve(s.between, (in_height + kRows - 1) * between_row);
  for (int y = 0; y < in_height; y += kRows) {
    const uint8_t* rows[kRows];
    uint8_t* to[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = rgbx + std::min(y + r, in_height - 1) * row_bytes, to[r] = s.between.data() + (y + r) * between_row;
    horizontal_rows<4>(rows, s.horizontal, to);
  }
  const auto& v = s.vertical;
  for (int y = 0; y < size; ++y)
    vertical_row<3>(s.between.data() + v.first[size_t(y)] * between_row, between_row, size, v.split.data() + size_t(y) * size_t(v.taps), v.count[size_t(y)], out + int64_t{y} * size * 3);
}

}  // namespace

bool resize_avx512_available() {
  static const bool available = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                                __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  return available;
}

void resize_avx512(const uint8_t* rgbx, int64_t row_bytes, int in_height, int in_width, int size, ResizeScratch& s, uint8_t* out) {
  if (vertical_pass_first(in_height, in_width, size)) resize_vertical_first<kRows>(rgbx, row_bytes, in_width, size, s, out, vertical_row<4>, horizontal_rows<3>);
  else horizontal_first(rgbx, row_bytes, in_height, size, s, out);
}

}  // namespace tessera::data

#else

namespace tessera::data {
bool resize_avx512_available() { return false; }
void resize_avx512(const uint8_t*, int64_t, int, int, int, ResizeScratch&, uint8_t*) {}
}  // namespace tessera::data

#endif
