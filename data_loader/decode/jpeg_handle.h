// A libjpeg decompressor whose errors and warnings end a call instead of the process. Private to data_loader/decode.
#pragma once

#include <csetjmp>
#include <cstdio>
#include <jpeglib.h>

#include "data_loader/decode/codecs.h"

namespace tessera::data {

// libjpeg reports through longjmp: every function that calls setjmp holds nothing with a destructor.
struct JpegError {
  jpeg_error_mgr base;
  jmp_buf jump;
  char text[JMSG_LENGTH_MAX];
  bool warned;
  int scans_max;
};

struct Jpeg {
  jpeg_decompress_struct info;
  JpegError error;
  jpeg_progress_mgr progress;

  explicit Jpeg(const DecodeLimits& limits);
  ~Jpeg() { jpeg_destroy_decompress(&info); }
  Jpeg(const Jpeg&) = delete;
  Jpeg& operator=(const Jpeg&) = delete;

  tl::unexpected<Error> failed() const { return bad_image(std::string("JPEG: ") + (error.text[0] ? error.text : "not readable")); }
  ImageSize size() const { return {int(info.image_width), int(info.image_height)}; }
};

// Header and limits. encoded_bytes: of the whole file, where `bytes` is its beginning only. Errors: kFixData.
Status open_jpeg(Jpeg& jpeg, std::span<const uint8_t> bytes, int64_t encoded_bytes, const DecodeLimits& limits);
// False: jpeg.failed() says why.
bool start_jpeg(Jpeg& jpeg, J_COLOR_SPACE colours);
// Reads `count` rows to `out`, `row_bytes` apart.
bool read_rows(Jpeg& jpeg, uint8_t* out, int64_t row_bytes, int count);
// Inverted CMYK as Pillow reads it; out may be in.
void cmyk_to_rgb(const uint8_t* in, int width, int out_pixel_bytes, uint8_t* out);

}  // namespace tessera::data
