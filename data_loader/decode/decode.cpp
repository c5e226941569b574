#include "data_loader/decode/decode.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <jerror.h>
#include <jpeglib.h>
#include <png.h>

namespace tessera::data {
namespace {

tl::unexpected<Error> bad(const std::string& what) { return fail(ErrorCode::kFixData, what); }

// ---- JPEG: libjpeg reports through longjmp; nothing with a destructor lives across it ----

struct JpegError {
  jpeg_error_mgr base;
  jmp_buf jump;
  char text[JMSG_LENGTH_MAX];
  bool warned;
  int scans_left;
};

void on_error(j_common_ptr info) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  info->err->format_message(info, error->text);
  longjmp(error->jump, 1);
}
void on_message(j_common_ptr info, int level) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  if (level >= 0 || info->err->msg_code == JWRN_EXTRANEOUS_DATA) return;
  if (!error->warned) info->err->format_message(info, error->text);
  error->warned = true;
}
void on_progress(j_common_ptr info) {
  auto* decoder = reinterpret_cast<j_decompress_ptr>(info);
  auto* error = reinterpret_cast<JpegError*>(info->err);
  if (decoder->input_scan_number > error->scans_left) {
    std::snprintf(error->text, sizeof error->text, "more than %d scans", error->scans_left);
    longjmp(error->jump, 1);
  }
}

uint8_t muldiv255(unsigned a, unsigned b) {
  const unsigned t = a * b + 128;
  return uint8_t(((t >> 8) + t) >> 8);
}

// Adobe's inverted CMYK as Pillow reads it.
void cmyk_row_to_rgb(const uint8_t* in, int width, uint8_t* out) {
  for (int x = 0; x < width; ++x) {
    const unsigned not_k = in[4 * x + 3];
    for (int c = 0; c < 3; ++c) out[3 * x + c] = uint8_t(not_k - muldiv255(255u - in[4 * x + c], not_k));
  }
}

struct Jpeg {
  jpeg_decompress_struct info;
  JpegError error;
  jpeg_progress_mgr progress;

  Jpeg() {
    std::memset(&info, 0, sizeof info);
    info.err = jpeg_std_error(&error.base);
    error.base.error_exit = on_error;
    error.base.emit_message = on_message;
    error.warned = false;
    error.text[0] = 0;
    jpeg_create_decompress(&info);
    progress.progress_monitor = on_progress;
    info.progress = &progress;
  }
  ~Jpeg() { jpeg_destroy_decompress(&info); }
};

bool read_header(Jpeg& jpeg, std::span<const uint8_t> bytes) {
  if (setjmp(jpeg.error.jump)) return false;
  jpeg_mem_src(&jpeg.info, bytes.data(), bytes.size());
  return jpeg_read_header(&jpeg.info, TRUE) == JPEG_HEADER_OK;
}

bool start(Jpeg& jpeg) {
  if (setjmp(jpeg.error.jump)) return false;
  const auto space = jpeg.info.jpeg_color_space;
  jpeg.info.out_color_space = space == JCS_CMYK || space == JCS_YCCK ? JCS_CMYK : space == JCS_GRAYSCALE ? JCS_GRAYSCALE : JCS_RGB;
  jpeg.info.dct_method = JDCT_ISLOW;
  jpeg.info.do_fancy_upsampling = TRUE;
  return jpeg_start_decompress(&jpeg.info);
}

bool read_row(Jpeg& jpeg, uint8_t* row) {
  if (setjmp(jpeg.error.jump)) return false;
  JSAMPROW rows[1] = {row};
  return jpeg_read_scanlines(&jpeg.info, rows, 1) == 1;
}

Result<Image> decode_jpeg(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits) {
  Jpeg jpeg;
  jpeg.error.scans_left = limits.max_scans;
  const auto failed = [&] { return bad(std::string("JPEG: ") + (jpeg.error.text[0] ? jpeg.error.text : "not readable")); };
  if (!read_header(jpeg, bytes)) return failed();
  Image image;
  image.width = int(jpeg.info.image_width), image.height = int(jpeg.info.image_height);
  if (int64_t{image.width} * image.height > limits.max_pixels)
    return bad("JPEG: " + std::to_string(image.width) + " x " + std::to_string(image.height) + " pixels exceed the limit of " + std::to_string(limits.max_pixels));
  if (!start(jpeg)) return failed();
  image.rows = bottom > 0 ? std::min(bottom, image.height) : image.height;
  image.rgb.resize(size_t(image.rows) * size_t(image.width) * 3);
  const int components = jpeg.info.output_components;
  std::vector<uint8_t> line(components == 3 ? 0 : size_t(image.width) * size_t(components));
  for (int y = 0; y < image.rows; ++y) {
    uint8_t* out = image.rgb.data() + size_t(y) * size_t(image.width) * 3;
    if (!read_row(jpeg, components == 3 ? out : line.data())) return failed();
    if (components == 1)
      for (int x = 0; x < image.width; ++x) out[3 * x] = out[3 * x + 1] = out[3 * x + 2] = line[size_t(x)];
    if (components == 4) cmyk_row_to_rgb(line.data(), image.width, out);
    if (jpeg.error.warned) return failed();
  }
  return image;
}

// ---- PNG ----

struct PngSource {
  std::span<const uint8_t> bytes;
  size_t at = 0;
  char text[128] = {};
  jmp_buf jump;
};
void png_read(png_structp png, png_bytep out, size_t size) {
  auto* source = static_cast<PngSource*>(png_get_io_ptr(png));
  if (size > source->bytes.size() - source->at) png_error(png, "the file ends too early");
  std::memcpy(out, source->bytes.data() + source->at, size);
  source->at += size;
}
void png_failed(png_structp png, png_const_charp text) {
  auto* source = static_cast<PngSource*>(png_get_error_ptr(png));
  std::snprintf(source->text, sizeof source->text, "%s", text);
  longjmp(source->jump, 1);
}
void png_warned(png_structp, png_const_charp) {}

struct Png {
  PngSource source;
  png_structp png = nullptr;
  png_infop info = nullptr;
  explicit Png(std::span<const uint8_t> bytes) {
    source.bytes = bytes;
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source, png_failed, png_warned);
    info = png_create_info_struct(png);
    png_set_read_fn(png, &source, png_read);
  }
  ~Png() { png_destroy_read_struct(&png, &info, nullptr); }
};

bool png_header(Png& p, const DecodeLimits& limits, int* width, int* height) {
  if (setjmp(p.source.jump)) return false;
  png_set_user_limits(p.png, 1u << 20, 1u << 20);
  png_read_info(p.png, p.info);
  *width = int(png_get_image_width(p.png, p.info)), *height = int(png_get_image_height(p.png, p.info));
  if (int64_t{*width} * *height > limits.max_pixels) png_error(p.png, "more pixels than the limit");
  return true;
}
bool png_rows(Png& p, uint8_t* out, png_bytepp rows, int width, int height) {
  if (setjmp(p.source.jump)) return false;
  png_set_expand(p.png);
  png_set_strip_16(p.png);
  png_set_strip_alpha(p.png);
  png_set_gray_to_rgb(p.png);
  png_set_interlace_handling(p.png);
  png_read_update_info(p.png, p.info);
  if (png_get_rowbytes(p.png, p.info) != size_t(width) * 3) png_error(p.png, "unexpected row size");
  for (int y = 0; y < height; ++y) rows[y] = out + size_t(y) * size_t(width) * 3;
  png_read_image(p.png, rows);
  png_read_end(p.png, nullptr);
  return true;
}

Result<Image> decode_png(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  Png p(bytes);
  Image image;
  if (!png_header(p, limits, &image.width, &image.height)) return bad(std::string("PNG: ") + p.source.text);
  image.rows = image.height;
  image.rgb.resize(size_t(image.width) * size_t(image.height) * 3);
  std::vector<png_bytep> rows(size_t(image.height), nullptr);
  if (!png_rows(p, image.rgb.data(), rows.data(), image.width, image.height)) return bad(std::string("PNG: ") + p.source.text);
  return image;
}

bool is_png(std::span<const uint8_t> b) { return b.size() > 8 && std::memcmp(b.data(), "\x89PNG\r\n\x1a\n", 8) == 0; }
bool is_jpeg(std::span<const uint8_t> b) { return b.size() > 3 && b[0] == 0xFF && b[1] == 0xD8; }

}  // namespace

Result<ImageSize> image_size(std::span<const uint8_t> bytes) {
  ImageSize size;
  if (is_png(bytes)) {
    Png p(bytes);
    if (!png_header(p, {}, &size.width, &size.height)) return bad(std::string("PNG: ") + p.source.text);
    return size;
  }
  if (!is_jpeg(bytes)) return bad("neither JPEG nor PNG");
  Jpeg jpeg;
  if (!read_header(jpeg, bytes)) return bad(std::string("JPEG: ") + jpeg.error.text);
  return ImageSize{int(jpeg.info.image_width), int(jpeg.info.image_height)};
}

Result<Image> decode(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits) {
  if (is_png(bytes)) return decode_png(bytes, limits);
  if (is_jpeg(bytes)) return decode_jpeg(bytes, bottom, limits);
  return bad("neither JPEG nor PNG");
}

std::string decoder_fingerprint() {
  return "libjpeg-turbo-islow-" + std::to_string(JPEG_LIB_VERSION) + ";libpng-" + std::string(PNG_LIBPNG_VER_STRING) + ";pillow-resize-1";
}

}  // namespace tessera::data
