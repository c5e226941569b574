#include "test_images.h"

#include <cstdio>
#include <cstdlib>
#include <jpeglib.h>
#include <png.h>

namespace tessera::data::test {

std::vector<uint8_t> make_pixels(int width, int height, int channels, uint32_t seed) {
  std::mt19937 random(seed);
  const int a = int(random() % 7) + 1, b = int(random() % 5) + 1;
  std::vector<uint8_t> out;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < channels; ++c) out.push_back(uint8_t((x * a + y * b * (c + 1) + ((x / 9 + y / 7) % 2) * 90 + int(random() % 32)) & 255));
  return out;
}

std::vector<uint8_t> make_jpeg(int width, int height, const JpegForm& form, uint32_t seed) {
  std::vector<uint8_t> pixels = make_pixels(width, height, form.channels, seed);
  jpeg_compress_struct info;
  jpeg_error_mgr error;
  info.err = jpeg_std_error(&error);
  jpeg_create_compress(&info);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &memory, &size);
  info.image_width = JDIMENSION(width), info.image_height = JDIMENSION(height);
  info.input_components = form.channels;
  info.in_color_space = form.channels == 1 ? JCS_GRAYSCALE : form.channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, form.quality, TRUE);
  if (form.channels == 3) info.comp_info[0].h_samp_factor = form.h_sampling, info.comp_info[0].v_samp_factor = form.v_sampling;
  info.restart_interval = unsigned(form.restart_interval);
  if (form.progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  for (int y = 0; y < height; ++y) {
    JSAMPROW row = pixels.data() + size_t(y) * size_t(width) * size_t(form.channels);
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  std::vector<uint8_t> out(memory, memory + size);
  jpeg_destroy_compress(&info);
  std::free(memory);
  return out;
}

std::vector<uint8_t> make_png(int width, int height, bool interlaced, uint32_t seed) {
  std::vector<uint8_t> pixels = make_pixels(width, height, 3, seed), out;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  png_set_write_fn(png, &out, [](png_structp p, png_bytep data, size_t size) {
    auto* bytes = static_cast<std::vector<uint8_t>*>(png_get_io_ptr(p));
    bytes->insert(bytes->end(), data, data + size);
  }, nullptr);
  png_set_IHDR(png, info, png_uint_32(width), png_uint_32(height), 8, PNG_COLOR_TYPE_RGB, interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  std::vector<png_bytep> rows;
  for (int y = 0; y < height; ++y) rows.push_back(pixels.data() + size_t(y) * size_t(width) * 3);
  png_write_info(png, info);
  png_write_image(png, rows.data());
  png_write_end(png, nullptr);
  png_destroy_write_struct(&png, &info);
  return out;
}

}  // namespace tessera::data::test
