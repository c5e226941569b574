// Encoded images to RGB. JPEG through libjpeg-turbo (ISLOW, fancy up-sampling: the same bytes as Pillow), PNG through
// libpng; both as Pillow's convert("RGB"): grey replicated, CMYK and YCCK by Pillow's formula, alpha dropped, EXIF
// orientation ignored.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::data {

struct Image {
  int width = 0;
  int height = 0;            // of the image
  int rows = 0;              // decoded rows, from the top
  std::vector<uint8_t> rgb;  // rows x width x 3
};

struct DecodeLimits {
  int64_t max_pixels = 178'956'970;  // Pillow's own limit against decompression bombs
  int max_scans = 500;               // of a progressive JPEG
};

struct ImageSize {
  int width = 0;
  int height = 0;
};

// From the header only. Error: kFixData.
Result<ImageSize> image_size(std::span<const uint8_t> bytes);

// Decodes rows [0, bottom); bottom <= 0: all. The rows have the same bytes as in a full decode. Every warning of the
// codec that costs pixels (truncated or corrupt data) is an error. Error: kFixData with the codec's reason.
Result<Image> decode(std::span<const uint8_t> bytes, int bottom = 0, const DecodeLimits& limits = {});

// Names the decoders and versions whose bytes these are; loaders of one run must agree.
std::string decoder_fingerprint();

}  // namespace tessera::data
