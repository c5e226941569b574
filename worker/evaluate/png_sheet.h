// A canvas of RGB pixels that is written as PNG: for picture sheets.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::evaluate {

struct Color {
  uint8_t r = 0, g = 0, b = 0;
};

class Canvas {
 public:
  Canvas(int width, int height, Color background);
  int width() const { return width_; }
  int height() const { return height_; }
  void set(int x, int y, Color color);  // outside: ignored
  // An image of size x size pixels, enlarged `zoom` times without smoothing.
  void draw_image(int left, int top, const uint8_t* rgb, int size, int zoom);
  // Blends a rectangle towards a colour; alpha in [0, 1].
  void shade(int left, int top, int width, int height, Color color, double alpha);
  void frame(int left, int top, int width, int height, Color color, int thickness);
  Status write(const std::string& path) const;  // Error: kIo

 private:
  int width_, height_;
  std::vector<uint8_t> rgb_;
};

}  // namespace tessera::evaluate
