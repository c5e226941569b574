// Legend: rgbx rows hold 4-byte pixels; a weight is split into high * 4096 + low, so that a product of two bytes and two
// weights is one 16-bit multiply-add each; the sum (high << 12) + low equals the scalar code's modulo 2^32, and that sum
// fits 32 bits. The same bytes as resize.cpp's scalar passes.
#include <algorithm>
#include <cstring>

#include "data_loader/transform/resize.h"
#include "data_loader/transform/resize_passes.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace tessera::data {
namespace {

constexpr int kBits = 22;
#define TESSERA_AVX2 __attribute__((target("avx2")))

TESSERA_AVX2 inline __m256i two_rows(const uint8_t* a, const uint8_t* b) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)), 1);
}

TESSERA_AVX2 inline __m256i combine(__m256i high, __m256i low) {
  return _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 12), low), kBits);
}

// Four rows of the input to four rows of the output, kPixelBytes (3 or 4) a pixel.
template <int kPixelBytes>
TESSERA_AVX2 void horizontal_rows(const uint8_t* const row[4], const ResizeScratch::Weights& w, uint8_t* const out[4]) {
  // Pixels 0, 1 and pixels 2, 3 of each half as 16-bit pairs per channel.
  const __m256i pair01 = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1));
  const __m256i pair23 = _mm256_broadcastsi128_si256(_mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1));
  const __m256i rounding = _mm256_set1_epi32(1 << (kBits - 1));
  for (int x = 0; x < w.out; ++x) {
    const int32_t* split = w.split.data() + size_t(x) * size_t(w.taps);
    const int64_t at = int64_t{w.first[size_t(x)]} * 4;
    const int count = w.count[size_t(x)];
    __m256i high_a = _mm256_setzero_si256(), high_b = high_a, low_a = rounding, low_b = rounding;
    for (int i = 0; i < count; i += 4) {
      const __m256i a = two_rows(row[0] + at + i * 4, row[1] + at + i * 4), b = two_rows(row[2] + at + i * 4, row[3] + at + i * 4);
      const __m256i h01 = _mm256_set1_epi32(split[i]), l01 = _mm256_set1_epi32(split[i + 1]);
      const __m256i h23 = _mm256_set1_epi32(split[i + 2]), l23 = _mm256_set1_epi32(split[i + 3]);
      const __m256i a01 = _mm256_shuffle_epi8(a, pair01), a23 = _mm256_shuffle_epi8(a, pair23);
      const __m256i b01 = _mm256_shuffle_epi8(b, pair01), b23 = _mm256_shuffle_epi8(b, pair23);
      high_a = _mm256_add_epi32(high_a, _mm256_add_epi32(_mm256_madd_epi16(a01, h01), _mm256_madd_epi16(a23, h23)));
      low_a = _mm256_add_epi32(low_a, _mm256_add_epi32(_mm256_madd_epi16(a01, l01), _mm256_madd_epi16(a23, l23)));
      high_b = _mm256_add_epi32(high_b, _mm256_add_epi32(_mm256_madd_epi16(b01, h01), _mm256_madd_epi16(b23, h23)));
      low_b = _mm256_add_epi32(low_b, _mm256_add_epi32(_mm256_madd_epi16(b01, l01), _mm256_madd_epi16(b23, l23)));
    }
    __m256i bytes = _mm256_packs_epi32(combine(high_a, low_a), combine(high_b, low_b));
    bytes = _mm256_packus_epi16(bytes, bytes);  // low half: rows 0, 2; high half: rows 1, 3
    const __m128i even = _mm256_castsi256_si128(bytes), odd = _mm256_extracti128_si256(bytes, 1);
    const int32_t pixel[4] = {_mm_cvtsi128_si32(even), _mm_cvtsi128_si32(odd), _mm_extract_epi32(even, 1), _mm_extract_epi32(odd, 1)};
    for (int r = 0; r < 4; ++r) std::memcpy(out[r] + x * kPixelBytes, &pixel[r], kPixelBytes);
  }
}

// One row of the output from `count` rows of `width` 4-byte pixels, in pieces of 8 pixels of kPixelBytes (3 or 4); writes up
// to 28 bytes beyond the row, and reads as many beyond the rows.
template <int kPixelBytes>
TESSERA_AVX2 void vertical_row(const uint8_t* in, int64_t row_bytes, int width, const int32_t* split, int count, uint8_t* out) {
  const __m256i zero = _mm256_setzero_si256(), rounding = _mm256_set1_epi32(1 << (kBits - 1));
  const __m128i drop_x = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  for (int x = 0; x < width; x += 8) {
    __m256i high[4] = {zero, zero, zero, zero}, low[4] = {rounding, rounding, rounding, rounding};
    for (int i = 0; i < count; i += 2) {
      const uint8_t* first_row = in + i * row_bytes + x * 4;
      const uint8_t* second_row = i + 1 < count ? first_row + row_bytes : first_row;  // its weight is then zero
      const __m256i p = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first_row));
      const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second_row));
      const __m256i first = _mm256_unpacklo_epi8(p, q), second = _mm256_unpackhi_epi8(p, q);
      const __m256i h = _mm256_set1_epi32(split[i]), l = _mm256_set1_epi32(split[i + 1]);
      const __m256i pairs[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero), _mm256_unpacklo_epi8(second, zero),
                                _mm256_unpackhi_epi8(second, zero)};
      for (int j = 0; j < 4; ++j) {
        high[j] = _mm256_add_epi32(high[j], _mm256_madd_epi16(pairs[j], h));
        low[j] = _mm256_add_epi32(low[j], _mm256_madd_epi16(pairs[j], l));
      }
    }
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(combine(high[0], low[0]), combine(high[1], low[1])),
                                              _mm256_packs_epi32(combine(high[2], low[2]), combine(high[3], low[3])));
    uint8_t* pixels = out + x * kPixelBytes;
    if (kPixelBytes == 4) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(pixels), bytes);
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pixels), _mm_shuffle_epi8(_mm256_castsi256_si128(bytes), drop_x));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(pixels + 12), _mm_shuffle_epi8(_mm256_extracti128_si256(bytes, 1), drop_x));
    }
  }
}

void horizontal_first(const uint8_t* rgbx, int64_t row_bytes, int in_height, int size, ResizeScratch& s, uint8_t* out) {
  const int64_t between_row = int64_t{size} * 4, out_row = int64_t{size} * 3;
  reserve(s.between, (in_height + 3) * between_row + 64);
  for (int y = 0; y < in_height; y += 4) {
    const uint8_t* rows[4];
    uint8_t* to[4];
    for (int r = 0; r < 4; ++r) rows[r] = rgbx + std::min(y + r, in_height - 1) * row_bytes, to[r] = s.between.data() + (y + r) * between_row;
    horizontal_rows<4>(rows, s.horizontal, to);
  }
  const auto& v = s.vertical;
  const int64_t written = int64_t{size + 7} / 8 * 24 + 4, total = out_row * size;
  reserve(s.line, written);
  for (int y = 0; y < size; ++y) {
    const bool spills = y * out_row + written > total;  // beyond the caller's memory: by way of a line of our own
    uint8_t* row = spills ? s.line.data() : out + y * out_row;
    vertical_row<3>(s.between.data() + v.first[size_t(y)] * between_row, between_row, size, v.split.data() + size_t(y) * size_t(v.taps), v.count[size_t(y)], row);
    if (spills) std::memcpy(out + y * out_row, row, size_t(out_row));
  }
}

}  // namespace

bool resize_avx2_available() {
  static const bool available = __builtin_cpu_supports("avx2");
  return available;
}

void resize_avx2(const uint8_t* rgbx, int64_t row_bytes, int in_height, int in_width, int size, ResizeScratch& s, uint8_t* out) {
  if (vertical_pass_first(in_height, in_width, size)) resize_vertical_first<4>(rgbx, row_bytes, in_width, size, s, out, vertical_row<4>, horizontal_rows<3>);
  else horizontal_first(rgbx, row_bytes, in_height, size, s, out);
}

}  // namespace tessera::data

#else

namespace tessera::data {
bool resize_avx2_available() { return false; }
void resize_avx2(const uint8_t*, int64_t, int, int, int, ResizeScratch&, uint8_t*) {}
}  // namespace tessera::data

#endif
