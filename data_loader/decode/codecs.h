// The two codecs behind decode.h. Private to data_loader/decode.
#pragma once

#include "data_loader/decode/decode.h"

namespace tessera::data {

tl::unexpected<Error> bad_image(const std::string& what);
// The limits that need no codec. Errors: kFixData.
Status check_claim(const char* format, int64_t width, int64_t height, int64_t encoded_bytes, int64_t pixels_per_byte, const DecodeLimits& limits);

Result<ImageSize> jpeg_size(std::span<const uint8_t> bytes, int64_t encoded_bytes, const DecodeLimits& limits);
Result<Image> jpeg_decode(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits);
enum class EntropyCode {
  kBest,     // our decoder where it can, else the library's
  kLibrary,  // libjpeg-turbo alone
};
Status jpeg_decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits, EntropyCode code = EntropyCode::kBest);
Status packed_decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits, EntropyCode code = EntropyCode::kBest);
int64_t own_entropy_windows();             // of this thread: windows that our decoder was plugged in for
std::span<const uint8_t> probe_jpeg();     // a built-in image, 27 x 21, 4:2:0
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
