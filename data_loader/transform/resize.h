// Crop, then antialiased resize with Pillow's arithmetic, byte for byte: fixed-point weights of 22 bits, a horizontal and
// a vertical pass with rounding to uint8 between them; nothing outside the crop box is read.
// Source: Pillow src/libImaging/Resample.c.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/messages.h"

namespace tessera::data {

enum class Filter {
  kBilinear,  // triangle, support 1
  kBicubic,   // a = -0.5, support 2
};

// Working memory that a thread keeps from image to image.
struct ResizeScratch {
  std::vector<uint8_t> between;
  struct Weights {
    int in = -1, out = -1;
    Filter filter = Filter::kBilinear;
    int taps = 0;
    std::vector<int> first, count;
    std::vector<int32_t> weight;  // out x taps
  } horizontal, vertical;
};

// rgb: rows of row_bytes, 3 bytes a pixel; box inside it; writes size x size x 3 bytes, mirrored if box.flip.
void crop_resize(const uint8_t* rgb, int64_t row_bytes, const proto::CropBox& box, int size, Filter filter, uint8_t* out, ResizeScratch& scratch);

}  // namespace tessera::data
