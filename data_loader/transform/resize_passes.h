// What resize_avx2.cpp and resize_avx512.cpp share: the pass order with the vertical one first, around their own kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "data_loader/transform/resize.h"

namespace tessera::data {

inline void reserve(std::vector<uint8_t>& bytes, int64_t needed) {
  if (int64_t(bytes.size()) < needed) bytes.resize(size_t(needed));
}

// kRows: rows that `horizontal_rows` takes at a time; vertical_row writes 4 bytes a pixel, horizontal_rows 3.
template <int kRows, typename VerticalRow, typename HorizontalRows>
void resize_vertical_first(const uint8_t* rgbx, int64_t row_bytes, int in_width, int size, ResizeScratch& s, uint8_t* out, VerticalRow vertical_row, HorizontalRows horizontal_rows) {
  const int64_t between_row = int64_t{in_width} * 4, out_row = int64_t{size} * 3;
  reserve(s.between, size * between_row + 64);
  reserve(s.line, out_row);
  const auto& v = s.vertical;
  for (int y = 0; y < size; ++y)
    vertical_row(rgbx + v.first[size_t(y)] * row_bytes, row_bytes, in_width, v.split.data() + size_t(y) * size_t(v.taps), v.count[size_t(y)], s.between.data() + y * between_row);
  for (int y = 0; y < size; y += kRows) {
    const uint8_t* rows[kRows];
    uint8_t* to[kRows];
    for (int r = 0; r < kRows; ++r) {
      rows[r] = s.between.data() + std::min(y + r, size - 1) * between_row;
      to[r] = y + r < size ? out + (y + r) * out_row : s.line.data();
    }
    horizontal_rows(rows, s.horizontal, to);
  }
}

}  // namespace tessera::data
