#include "data_loader/decode/decode.h"

#include <cstring>

#include "data_loader/decode/codecs.h"
#include "data_loader/decode/packed_jpeg.h"

namespace tessera::data {
namespace {

bool is_png(std::span<const uint8_t> b) { return b.size() > 8 && std::memcmp(b.data(), "\x89PNG\r\n\x1a\n", 8) == 0; }
bool is_jpeg(std::span<const uint8_t> b) { return b.size() > 3 && b[0] == 0xFF && b[1] == 0xD8; }

tl::unexpected<Error> unknown(std::span<const uint8_t> bytes) {
  return bad_image(bytes.empty() ? "the file is empty" : "neither JPEG nor PNG; convert the image or leave it out of the dataset");
}

}  // namespace

tl::unexpected<Error> bad_image(const std::string& what) { return fail(ErrorCode::kFixData, what); }

Status check_claim(const char* format, int64_t width, int64_t height, int64_t encoded_bytes, int64_t pixels_per_byte, const DecodeLimits& limits) {
  const std::string claim = std::string(format) + ": " + std::to_string(width) + " x " + std::to_string(height) + " pixels";
  if (encoded_bytes > limits.max_bytes)
    return bad_image(std::string(format) + ": " + std::to_string(encoded_bytes) + " bytes exceed the limit of " + std::to_string(limits.max_bytes));
  if (width < 1 || height < 1) return bad_image(claim + " are no image");
  if (width * height > limits.max_pixels) return bad_image(claim + " exceed the limit of " + std::to_string(limits.max_pixels) + "; scale the image down");
  if (width * height > encoded_bytes * pixels_per_byte) return bad_image(claim + " cannot be in a file of " + std::to_string(encoded_bytes) + " bytes");
  return {};
}

Status check_window(const PixelWindow& w, const ImageSize& full) {
  if (w.top >= 0 && w.left >= 0 && w.height > 0 && w.width > 0 && w.top <= full.height - w.height && w.left <= full.width - w.width) return {};
  return fail(ErrorCode::kInternal, "[data_loader] window " + std::to_string(w.height) + "x" + std::to_string(w.width) + " at (" + std::to_string(w.top) + ", " +
                                        std::to_string(w.left) + ") is not inside an image of " + std::to_string(full.height) + "x" + std::to_string(full.width));
}

void reserve_window(WindowImage& out, const ImageSize& full, const PixelWindow& decoded) {
  out.full = full;
  out.decoded = decoded;
  out.row_bytes = int64_t{decoded.width} * 4;
  const size_t needed = size_t(out.row_bytes * decoded.height) + 64;
  if (out.rgbx.size() < needed) out.rgbx.resize(needed);
}

Result<ImageSize> image_size(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  if (is_jpeg(bytes)) return jpeg_size(bytes, int64_t(bytes.size()), limits);
  if (is_png(bytes)) return png_size(bytes, limits);
  if (is_packed_jpeg(bytes)) {
    TESSERA_ASSIGN(const PackedJpeg packed, parse_packed_jpeg(bytes));
    return jpeg_size(packed.header, packed.original_bytes, limits);
  }
  return unknown(bytes);
}

Result<Image> decode(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits) {
  if (is_jpeg(bytes)) return jpeg_decode(bytes, bottom, limits);
  if (is_png(bytes)) return png_decode(bytes, bottom, limits);
  if (is_packed_jpeg(bytes)) {
    TESSERA_ASSIGN(const std::string original, unpack_jpeg(bytes));
    return jpeg_decode({reinterpret_cast<const uint8_t*>(original.data()), original.size()}, bottom, limits);
  }
  return unknown(bytes);
}

Status decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits) {
  if (is_jpeg(bytes)) return jpeg_decode_window(bytes, window, out, limits);
  if (is_png(bytes)) return png_decode_window(bytes, window, out, limits);
  if (is_packed_jpeg(bytes)) return packed_decode_window(bytes, window, out, limits);
  return unknown(bytes);
}

}  // namespace tessera::data
