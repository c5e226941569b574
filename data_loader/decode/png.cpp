#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "data_loader/decode/codecs.h"

namespace tessera::data {
namespace {

// libpng reports through longjmp: every function below that calls setjmp holds nothing with a destructor.
struct Source {
  std::span<const uint8_t> bytes;
  size_t at = 0;
  char text[128] = {};
  jmp_buf jump;
};

void on_read(png_structp png, png_bytep out, size_t size) {
  auto* source = static_cast<Source*>(png_get_io_ptr(png));
  if (size > source->bytes.size() - source->at) png_error(png, "the file ends too early");
  std::memcpy(out, source->bytes.data() + source->at, size);
  source->at += size;
}

void on_error(png_structp png, png_const_charp text) {
  auto* source = static_cast<Source*>(png_get_error_ptr(png));
  std::snprintf(source->text, sizeof source->text, "%s", text);
  longjmp(source->jump, 1);
}

// libpng's warnings are about ancillary chunks and spare bytes; what costs pixels is an error.
void on_warning(png_structp, png_const_charp) {}

struct Png {
  Source source;
  png_structp png = nullptr;
  png_infop info = nullptr;

  explicit Png(std::span<const uint8_t> bytes) {
    source.bytes = bytes;
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source, on_error, on_warning);
    if (png) info = png_create_info_struct(png);
  }
  ~Png() { png_destroy_read_struct(&png, &info, nullptr); }
  Png(const Png&) = delete;
  Png& operator=(const Png&) = delete;
  tl::unexpected<Error> failed() const { return bad_image(std::string("PNG: ") + (source.text[0] ? source.text : "not readable")); }
};

bool read_header(Png& p, int* width, int* height) {
  if (!p.info || setjmp(p.source.jump)) return false;
  png_set_read_fn(p.png, &p.source, on_read);
  png_set_user_limits(p.png, 1u << 20, 1u << 20);
  png_set_keep_unknown_chunks(p.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);  // text, profiles, times: not even parsed
  png_read_info(p.png, p.info);
  *width = int(png_get_image_width(p.png, p.info)), *height = int(png_get_image_height(p.png, p.info));
  return true;
}

bool is_grey16(const Png& p) { return png_get_color_type(p.png, p.info) == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(p.png, p.info) == 16; }

// Reads all rows to `out`; 16-bit grey stays 16 bits, all else becomes pixel_bytes (3 or 4) bytes a pixel.
bool read_rows(Png& p, uint8_t* out, int64_t row_bytes, int width, int height, int pixel_bytes) {
  if (setjmp(p.source.jump)) return false;
  size_t expected = size_t(width) * 2;
  if (!is_grey16(p)) {
    png_set_expand(p.png);
    png_set_strip_16(p.png);
    png_set_strip_alpha(p.png);
    png_set_gray_to_rgb(p.png);
    if (pixel_bytes == 4) png_set_filler(p.png, 0xFF, PNG_FILLER_AFTER);
    expected = size_t(width) * size_t(pixel_bytes);
  }
  const int passes = png_set_interlace_handling(p.png);
  png_read_update_info(p.png, p.info);
  if (png_get_rowbytes(p.png, p.info) != expected) png_error(p.png, "unexpected row size");
  for (int pass = 0; pass < passes; ++pass)
    for (int y = 0; y < height; ++y) png_read_row(p.png, out + y * row_bytes, nullptr);
  png_read_end(p.png, nullptr);
  return true;
}

// In place, from the end: two bytes a pixel, high byte first, to pixel_bytes.
void clip_grey16(uint8_t* row, int width, int pixel_bytes) {
  for (int x = width - 1; x >= 0; --x) {
    const uint8_t value = row[2 * x] ? 255 : row[2 * x + 1];
    uint8_t* pixel = row + x * pixel_bytes;
    for (int c = 0; c < pixel_bytes; ++c) pixel[c] = value;
  }
}

Status open(Png& p, std::span<const uint8_t> bytes, ImageSize& size, const DecodeLimits& limits) {
  if (!read_header(p, &size.width, &size.height)) return p.failed();
  return check_claim("PNG", size.width, size.height, int64_t(bytes.size()), 1032 * 8, limits);  // deflate's best, one bit a pixel
}

Status read(Png& p, uint8_t* out, int64_t row_bytes, const ImageSize& size, int pixel_bytes) {
  const bool grey16 = is_grey16(p);
  if (!read_rows(p, out, row_bytes, size.width, size.height, pixel_bytes)) return p.failed();
  for (int y = 0; grey16 && y < size.height; ++y) clip_grey16(out + y * row_bytes, size.width, pixel_bytes);
  return {};
}

}  // namespace

Result<ImageSize> png_size(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  Png p(bytes);
  ImageSize size;
  TESSERA_TRY(open(p, bytes, size, limits));
  return size;
}

Result<Image> png_decode(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits) {
  Png p(bytes);
  ImageSize size;
  TESSERA_TRY(open(p, bytes, size, limits));
  Image image;
  image.width = size.width, image.height = size.height;
  image.rows = bottom > 0 ? std::min(bottom, size.height) : size.height;
  const int64_t row_bytes = int64_t{size.width} * 3;
  image.rgb.resize(size_t(size.height * row_bytes));
  TESSERA_TRY(read(p, image.rgb.data(), row_bytes, size, 3));
  image.rgb.resize(size_t(image.rows * row_bytes));
  return image;
}

Status png_decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits) {
  Png p(bytes);
  ImageSize size;
  TESSERA_TRY(open(p, bytes, size, limits));
  TESSERA_TRY(check_window(window, size));
  reserve_window(out, size, {0, 0, size.height, size.width});
  return read(p, out.rgbx.data(), out.row_bytes, size, 4);
}

std::string png_version() { return std::string("libpng ") + png_get_libpng_ver(nullptr); }

}  // namespace tessera::data
