// Encoded images to RGB, the same bytes as Pillow's open().convert("RGB"). Pure; call from any thread.
//
// The rules are part of the function (a change raises function.version):
//   JPEG  libjpeg-turbo, slow integer DCT, fancy up-sampling; grey replicated; CMYK and YCCK by Pillow's formula (always
//         taken as inverted); EXIF orientation and colour profiles ignored.
//   PNG   palette looked up, alpha and tRNS dropped, 1, 2, 4 bits scaled to 0..255, 16-bit colour cut to its high byte,
//         16-bit grey without alpha clipped at 255 (Pillow's rule), Adam7; gamma and profiles ignored.
//   A warning of the codec that costs pixels (cut or corrupt data) is an error: no half picture is ever returned.
// Tests: tests/unit/data_loader/decode_test.cpp, decode_fuzz_test.cpp, golden_transforms_test.cpp
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::data {

struct ImageSize {
  int width = 0;
  int height = 0;
  bool operator==(const ImageSize&) const = default;
};

// Pixels of an image, 3 bytes each, rows without padding.
struct Image {
  int width = 0;
  int height = 0;            // of the image
  int rows = 0;              // decoded rows, from the top
  std::vector<uint8_t> rgb;  // rows x width x 3
};

// Rows top .. top + height, columns left .. left + width of an image.
struct PixelWindow {
  int top = 0, left = 0, height = 0, width = 0;
  bool operator==(const PixelWindow&) const = default;
};

// Part of an image, 4 bytes a pixel (R, G, B, any): what the resizer's vector code reads. Kept by its owner from image to
// image, so that memory is reused. 64 bytes after the last pixel may be read.
struct WindowImage {
  ImageSize full;       // of the whole image
  PixelWindow decoded;  // what rgbx holds
  int64_t row_bytes = 0;
  std::vector<uint8_t> rgbx;
  const uint8_t* pixel(int row, int column) const {  // of the whole image; must be inside `decoded`
    return rgbx.data() + int64_t{row - decoded.top} * row_bytes + int64_t{column - decoded.left} * 4;
  }
};

// What a decoder may be asked to do, so that a small file cannot cost gigabytes or minutes. A file that is too small to
// hold the pixels that it claims is refused too.
struct DecodeLimits {
  int64_t max_pixels = 178'956'970;           // Pillow's own limit against decompression bombs
  int max_scans = 500;                        // of a progressive JPEG
  int64_t max_bytes = int64_t{512} << 20;     // of the encoded file
};

// From the header only. Error kFixData: neither JPEG nor PNG; header damaged; a limit exceeded.
Result<ImageSize> image_size(std::span<const uint8_t> bytes, const DecodeLimits& limits = {});

// Decodes rows [0, bottom); bottom <= 0: all. The rows have the same bytes as in a full decode. Error: kFixData with the
// codec's reason.
Result<Image> decode(std::span<const uint8_t> bytes, int bottom = 0, const DecodeLimits& limits = {});

// Decodes `window` of an image: non-empty and inside it, else kInternal. Its pixels equal those of decode() bit for bit;
// out.decoded contains it and may be larger. Of a baseline JPEG only the blocks that are needed are transformed and
// nothing below the window is looked at, so damage there goes unnoticed: all loaders of a run use the same function.
// Error: kFixData with the codec's reason.
Status decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits = {});

// Names the decoders, their versions and a hash of what they make of built-in images; loaders of one run must agree.
std::string decoder_fingerprint();

}  // namespace tessera::data
