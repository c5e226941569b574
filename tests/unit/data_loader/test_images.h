// Pictures made in the test, encoded with libjpeg and libpng.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace tessera::data::test {

// Smooth colours with noise: every coefficient of a JPEG block has something to do.
std::vector<uint8_t> make_pixels(int width, int height, int channels, uint32_t seed);

struct JpegForm {
  int channels = 3;  // 1 grey, 3 colour, 4 CMYK
  int h_sampling = 2, v_sampling = 2;  // of the first component, when channels = 3
  int quality = 85;
  bool progressive = false;
  int restart_interval = 0;  // in blocks
};
std::vector<uint8_t> make_jpeg(int width, int height, const JpegForm& form, uint32_t seed);
std::vector<uint8_t> make_png(int width, int height, bool interlaced, uint32_t seed);

}  // namespace tessera::data::test
