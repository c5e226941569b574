// Encoded bytes to RGB pixels: JPEG and PNG, the same bytes as Pillow's open().convert("RGB"). Pure: any thread.
//
// The rules, all of them part of the function (a change raises function.version):
//   JPEG  slow integer DCT, fancy up-sampling; grey replicated; CMYK and YCCK as Pillow (always taken as inverted);
//         EXIF orientation and colour profiles ignored.
//   PNG   palette looked up, alpha and tRNS dropped, 1/2/4 bits scaled to 0..255, 16-bit colour cut to its high byte,
//         16-bit grey clipped at 255 (Pillow's rule), Adam7, gamma and profiles ignored.
//   A decoder's warning (damaged entropy data, missing end, wrong CRC) is an error, never a picture that looks whole.
// Tests: tests/unit/data_loader/decode_test.cpp, golden_transforms_test.cpp, decode_fuzz_test.cpp
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera {

enum class ImageFormat {
  kUnknown,
  kJpeg,
  kPng,
};
// By the first bytes, never by a file's name.
ImageFormat image_format(std::span<const uint8_t> bytes);

struct ImageSize {
  int width = 0;   // pixels
  int height = 0;  // pixels, as stored: EXIF orientation ignored
  bool operator==(const ImageSize&) const = default;
};

// What a decoder may be asked to do, so that a small file cannot cost gigabytes or minutes.
struct DecodeLimits {
  int64_t encoded_bytes = int64_t{256} << 20;
  int64_t pixels = int64_t{128} << 20;  // width x height of the whole image
  int scans = 100;                      // of a progressive JPEG
};

// Rows top .. top + height, columns left .. left + width of an image.
struct PixelWindow {
  int top = 0, left = 0, height = 0, width = 0;
  bool operator==(const PixelWindow&) const = default;
};

// Rows of pixels in memory that somebody else owns. R, G, B are the first three bytes of a pixel.
struct PixelView {
  const uint8_t* data = nullptr;  // pixel (0, 0) of the view
  int width = 0;
  int height = 0;
  int64_t stride_bytes = 0;  // from a row to the next
  int pixel_bytes = 3;       // 3: RGB; 4: RGBX, X arbitrary
};

// Pixels of an image or of a window of it, 4 bytes each (R, G, B, X): what the resizer's vector code reads. The memory
// is kept when an Image is decoded into again. Padded so that 64 bytes after the last pixel may be read.
struct Image {
  ImageSize full;       // of the whole image
  PixelWindow decoded;  // what `pixels` holds; contains the window asked for, may be larger
  int64_t stride_bytes = 0;
  std::vector<uint8_t> pixels;

  // View of a window, which must lie inside `decoded` (TESSERA_CHECK).
  PixelView view(const PixelWindow& window) const;
  PixelView view() const { return view(decoded); }
};

// Size from the headers alone, without decoding. Error kFixData: neither JPEG nor PNG; header damaged; over a limit.
Result<ImageSize> image_dimensions(std::span<const uint8_t> bytes, const DecodeLimits& limits = {});

// Decodes a whole image. Errors kFixData: as image_dimensions; damaged data with the decoder's own words.
Status decode_image(std::span<const uint8_t> bytes, Image& out, const DecodeLimits& limits = {});

// Decodes at least `window` (inside the image, not empty: else kInternal). Pixels equal those of decode_image bit for bit.
// Rows below the window are not looked at when the format allows (baseline JPEG), so damage there goes unnoticed: use one
// of the two functions for all loaders of a run. Errors: as decode_image.
Status decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, Image& out, const DecodeLimits& limits = {});

// Whole image as packed RGB, height x width x 3, for tools and tests.
Result<std::vector<uint8_t>> decode_rgb(std::span<const uint8_t> bytes, ImageSize& size, const DecodeLimits& limits = {});

// Names the decoders' versions and what they make of built-in probe images (a hash of the pixels). Loaders of one run
// must agree on it. Example: "jpeg libjpeg-turbo 2.1.5, png 1.6.39, pixels 0123...".
const std::string& decoder_fingerprint();

}  // namespace tessera
