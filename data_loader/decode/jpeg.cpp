#include "data_loader/decode/jpeg_handle.h"

#include <algorithm>
#include <cstring>
#include <jerror.h>

namespace tessera::data {
namespace {

void on_error(j_common_ptr info) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  if (!error->warned) info->err->format_message(info, error->text);
  longjmp(error->jump, 1);
}

// Warnings that cost no pixel: stray bytes before a marker, an unknown minor version or colour transform.
bool harmless(int code) { return code == JWRN_EXTRANEOUS_DATA || code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM; }

void on_message(j_common_ptr info, int level) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  if (level >= 0 || harmless(info->err->msg_code)) return;
  if (!error->warned) info->err->format_message(info, error->text);
  error->warned = true;
}

void on_progress(j_common_ptr info) {
  auto* error = reinterpret_cast<JpegError*>(info->err);
  const bool too_many = reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > error->scans_max;
  if (!too_many && !error->warned) return;
  if (!error->warned) std::snprintf(error->text, sizeof error->text, "more than %d scans", error->scans_max);
  longjmp(error->jump, 1);
}

uint8_t muldiv255(unsigned a, unsigned b) {
  const unsigned t = a * b + 128;
  return uint8_t(((t >> 8) + t) >> 8);
}

bool read_header(Jpeg& jpeg, const uint8_t* bytes, size_t size) {
  if (setjmp(jpeg.error.jump)) return false;
  jpeg_mem_src(&jpeg.info, bytes, size);
  return jpeg_read_header(&jpeg.info, TRUE) == JPEG_HEADER_OK;
}

}  // namespace

Jpeg::Jpeg(const DecodeLimits& limits) {
  std::memset(&info, 0, sizeof info);
  std::memset(&progress, 0, sizeof progress);
  info.err = jpeg_std_error(&error.base);
  error.base.error_exit = on_error;
  error.base.emit_message = on_message;
  error.warned = false;
  error.text[0] = 0;
  error.scans_max = limits.max_scans;
  jpeg_create_decompress(&info);
  progress.progress_monitor = on_progress;
  info.progress = &progress;
}

bool start_jpeg(Jpeg& jpeg, J_COLOR_SPACE colours) {
  if (setjmp(jpeg.error.jump)) return false;
  const auto space = jpeg.info.jpeg_color_space;
  jpeg.info.out_color_space = space == JCS_CMYK || space == JCS_YCCK ? JCS_CMYK : colours;
  jpeg.info.dct_method = JDCT_ISLOW;
  jpeg.info.do_fancy_upsampling = TRUE;
  return jpeg_start_decompress(&jpeg.info) && !jpeg.error.warned;
}

bool read_rows(Jpeg& jpeg, uint8_t* out, int64_t row_bytes, int count) {
  if (setjmp(jpeg.error.jump)) return false;
  constexpr int kRows = 16;
  JSAMPROW rows[kRows];
  for (int y = 0; y < count && !jpeg.error.warned;) {
    const int wanted = count - y < kRows ? count - y : kRows;
    for (int i = 0; i < wanted; ++i) rows[i] = out + (y + i) * row_bytes;
    const int got = int(jpeg_read_scanlines(&jpeg.info, rows, JDIMENSION(wanted)));
    if (got <= 0) return false;
    y += got;
  }
  return !jpeg.error.warned;
}

void cmyk_to_rgb(const uint8_t* in, int width, int out_pixel_bytes, uint8_t* out) {
  for (int x = 0; x < width; ++x, in += 4, out += out_pixel_bytes) {
    const unsigned not_k = in[3], c = in[0], m = in[1], y = in[2];
    out[0] = uint8_t(not_k - muldiv255(255u - c, not_k));
    out[1] = uint8_t(not_k - muldiv255(255u - m, not_k));
    out[2] = uint8_t(not_k - muldiv255(255u - y, not_k));
  }
}

Status open_jpeg(Jpeg& jpeg, std::span<const uint8_t> bytes, int64_t encoded_bytes, const DecodeLimits& limits) {
  if (!read_header(jpeg, bytes.data(), bytes.size())) return jpeg.failed();
  // A Huffman-coded block costs at least a bit, and 18 blocks hold at most 1,024 pixels.
  const int64_t pixels_per_byte = jpeg.info.arith_code ? int64_t{1} << 20 : 1024;
  return check_claim("JPEG", jpeg.info.image_width, jpeg.info.image_height, encoded_bytes, pixels_per_byte, limits);
}

Result<ImageSize> jpeg_size(std::span<const uint8_t> bytes, int64_t encoded_bytes, const DecodeLimits& limits) {
  Jpeg jpeg(limits);
  TESSERA_TRY(open_jpeg(jpeg, bytes, encoded_bytes, limits));
  return jpeg.size();
}

Result<Image> jpeg_decode(std::span<const uint8_t> bytes, int bottom, const DecodeLimits& limits) {
  Jpeg jpeg(limits);
  TESSERA_TRY(open_jpeg(jpeg, bytes, int64_t(bytes.size()), limits));
  if (!start_jpeg(jpeg, JCS_RGB)) return jpeg.failed();
  Image image;
  image.width = jpeg.size().width, image.height = jpeg.size().height;
  image.rows = bottom > 0 ? std::min(bottom, image.height) : image.height;
  const int64_t row_bytes = int64_t{image.width} * 3;
  image.rgb.resize(size_t(image.rows * row_bytes));
  if (jpeg.info.output_components == 3) {
    if (!read_rows(jpeg, image.rgb.data(), row_bytes, image.rows)) return jpeg.failed();
    return image;
  }
  std::vector<uint8_t> line(size_t(image.width) * 4);
  for (int y = 0; y < image.rows; ++y) {
    if (!read_rows(jpeg, line.data(), 0, 1)) return jpeg.failed();
    cmyk_to_rgb(line.data(), image.width, 3, image.rgb.data() + y * row_bytes);
  }
  return image;
}

std::string jpeg_version() {
  // The library's own words at run time; the numbers of a header may be of another build.
  jpeg_error_mgr error;
  std::string text = jpeg_std_error(&error)->jpeg_message_table[JMSG_VERSION];
  return "libjpeg " + text + " turbo " + std::to_string(LIBJPEG_TURBO_VERSION_NUMBER);
}

}  // namespace tessera::data
