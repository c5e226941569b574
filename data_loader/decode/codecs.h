// The two codecs behind decode.h. Private to data_loader/decode.
#pragma once

#include "data_loader/decode/decode.h"

namespace tessera::data {

tl::unexpected<Error> bad_image(const std::string& what);
// The limits that need no codec. Errors: kFixData.
Status check_claim(const char* format, int64_t width, int64_t height, int64_t encoded_bytes, int64_t pixels_per_byte, const DecodeLimits& limits);

Result<ImageSize> jpeg_size(std::span<const uint8_t> bytes, const DecodeLimits& limits);
Result<Image> jpeg_decode(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits);
Status jpeg_decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits);
std::string jpeg_version();  // "libjpeg-turbo 2.1.5 (api 62)"

Result<ImageSize> png_size(std::span<const uint8_t> bytes, const DecodeLimits& limits);
Result<Image> png_decode(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits);
Status png_decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits);
std::string png_version();

// A window that lies inside the image and is not empty; else kInternal.
Status check_window(const PixelWindow& window, const ImageSize& full);
// Readies out for `decoded`; bytes after the last pixel included. Keeps memory that is large enough.
void reserve_window(WindowImage& out, const ImageSize& full, const PixelWindow& decoded);

}  // namespace tessera::data
