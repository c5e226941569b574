// Crop, then antialiased resize with Pillow 13's arithmetic, byte for byte: fixed-point weights of 22 bits, two passes with
// rounding to uint8 between them; nothing outside the crop box is read. The horizontal pass comes first, but for boxes
// whose height shrinks by more than twice as many pixels as their width (new in Pillow 13: of published crops about one in
// fifteen; Pillow 9 to 12 differ there in some bytes by one or two levels).
// Source: Pillow src/libImaging/Resample.c. Tests: tests/unit/data_loader/resize_test.cpp, golden_transforms_test.cpp
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"
#include "proto/messages.h"

namespace tessera::data {

enum class Filter {
  kBilinear,  // triangle, support 1
  kBicubic,   // a = -0.5, support 2
};
// function.data.interpolation: "bilinear" | "bicubic". Error: kFixConfig.
Result<Filter> filter_of(const std::string& interpolation);

enum class ResizeCode {
  kBest,    // the fastest that this CPU has
  kScalar,  // the same bytes without vector code
  kAvx2,    // tests choose these; the CPU must have them (resize_code_available)
  kAvx512,  // with BW, VL, VBMI and VNNI
};
bool resize_code_available(ResizeCode code);

// Working memory that a thread keeps from image to image.
struct ResizeScratch {
  std::vector<uint8_t> between;
  std::vector<uint8_t> line;
  struct Weights {
    int in = -1, out = -1;
    Filter filter = Filter::kBilinear;
    int taps = 0;  // a multiple of 4; weights from count on are zero
    std::vector<int> first, count;
    std::vector<int32_t> weight;  // out x taps
    std::vector<int32_t> split;   // out x taps: for taps 2i, 2i+1 the high, then the low parts of both, as 16-bit pairs
  } horizontal, vertical;
};

// rgb: rows of row_bytes, 3 bytes a pixel; box inside it; writes size x size x 3 bytes, mirrored if box.flip.
void crop_resize(const uint8_t* rgb, int64_t row_bytes, const proto::CropBox& box, int size, Filter filter, uint8_t* out, ResizeScratch& scratch);

// The same from pixels of 4 bytes (R, G, B, any). box_pixels: the box's first pixel; box.top and box.left are not used. 64 bytes
// after the box's last pixel must be readable.
void crop_resize_rgbx(const uint8_t* box_pixels, int64_t row_bytes, const proto::CropBox& box, int size, Filter filter, uint8_t* out,
                      ResizeScratch& scratch, ResizeCode code = ResizeCode::kBest);

// Pillow 13's order of the passes.
constexpr bool vertical_pass_first(int in_height, int in_width, int size) {
  return in_height > size && int64_t{in_height} - size > 2 * (int64_t{in_width} - size);
}

// Internal: both passes with AVX2 (resize_avx2.cpp) or AVX-512 (resize_avx512.cpp); weights prepared.
bool resize_avx2_available();
void resize_avx2(const uint8_t* rgbx, int64_t row_bytes, int in_height, int in_width, int size, ResizeScratch& scratch, uint8_t* out);
bool resize_avx512_available();
void resize_avx512(const uint8_t* rgbx, int64_t row_bytes, int in_height, int in_width, int size, ResizeScratch& scratch, uint8_t* out);

}  // namespace tessera::data
