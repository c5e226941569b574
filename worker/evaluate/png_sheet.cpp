#include "worker/evaluate/png_sheet.h"

#include <cstring>
#include <filesystem>
#include <png.h>

#include "common/file.h"

namespace tessera::evaluate {

Canvas::Canvas(int width, int height, Color background) : width_(width), height_(height), rgb_(size_t(width) * size_t(height) * 3) {
  for (size_t i = 0; i < rgb_.size(); i += 3) rgb_[i] = background.r, rgb_[i + 1] = background.g, rgb_[i + 2] = background.b;
}

void Canvas::set(int x, int y, Color color) {
  if (x < 0 || y < 0 || x >= width_ || y >= height_) return;
  uint8_t* p = rgb_.data() + (size_t(y) * size_t(width_) + size_t(x)) * 3;
  p[0] = color.r, p[1] = color.g, p[2] = color.b;
}

void Canvas::draw_image(int left, int top, const uint8_t* rgb, int size, int zoom) {
  for (int y = 0; y < size * zoom; ++y)
    for (int x = 0; x < size * zoom; ++x) {
      const uint8_t* p = rgb + (size_t(y / zoom) * size_t(size) + size_t(x / zoom)) * 3;
      set(left + x, top + y, {p[0], p[1], p[2]});
    }
}

void Canvas::shade(int left, int top, int width, int height, Color color, double alpha) {
  for (int y = std::max(0, top); y < std::min(height_, top + height); ++y)
    for (int x = std::max(0, left); x < std::min(width_, left + width); ++x) {
      uint8_t* p = rgb_.data() + (size_t(y) * size_t(width_) + size_t(x)) * 3;
      const uint8_t to[3] = {color.r, color.g, color.b};
      for (int c = 0; c < 3; ++c) p[c] = uint8_t(p[c] * (1 - alpha) + to[c] * alpha + 0.5);
    }
}

void Canvas::frame(int left, int top, int width, int height, Color color, int thickness) {
  shade(left, top, width, thickness, color, 1);
  shade(left, top + height - thickness, width, thickness, color, 1);
  shade(left, top, thickness, height, color, 1);
  shade(left + width - thickness, top, thickness, height, color, 1);
}

Status Canvas::write(const std::string& path) const {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = png_uint_32(width_), image.height = png_uint_32(height_);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  if (!png_image_write_to_memory(&image, nullptr, &size, 0, rgb_.data(), 0, nullptr)) return fail(ErrorCode::kInternal, std::string("PNG: ") + image.message);
  std::string bytes(size, 0);
  if (!png_image_write_to_memory(&image, bytes.data(), &size, 0, rgb_.data(), 0, nullptr)) return fail(ErrorCode::kInternal, std::string("PNG: ") + image.message);
  bytes.resize(size);
  const auto parent = std::filesystem::path(path).parent_path();
  if (!parent.empty()) TESSERA_TRY(make_folders(parent.string()));
  return write_file_atomic(path, bytes);
}

}  // namespace tessera::evaluate
