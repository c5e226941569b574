// Antialiased resize, equal to Pillow's Image.resize byte for byte (Pillow 9 to 13, 8 bits per channel). Pure.
// Rule: src/libImaging/Resample.c. Weights in double, normalised, rounded to 22-bit fixed point; horizontal pass, rounded
// to bytes; vertical pass. Only pixels of the view are read. The vector twin (AVX2, chosen at run time) gives the same
// bytes as the scalar code: tests/unit/data_loader/resize_test.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"
#include "data_loader/decode/decode.h"

namespace tessera {

enum class Interpolation {
  kBilinear,  // triangle filter, support 1
  kBicubic,   // a = -0.5, support 2
};
// "bilinear" | "bicubic". Error: kFixConfig.
Result<Interpolation> interpolation_of(const std::string& name);

enum class ResizeCode {
  kBest,    // the fastest that this CPU has
  kScalar,  // portable
};

// Holds the weight tables and the rows between the passes, to be reused from image to image. One thread at a time.
class Resizer {
 public:
  explicit Resizer(ResizeCode code = ResizeCode::kBest);
  ~Resizer();
  Resizer(Resizer&&) noexcept;
  Resizer& operator=(Resizer&&) noexcept;

  // in: >= 1 x 1, sides up to 2^20; vector code is used for 4-byte pixels, whose last row must be readable 64 bytes beyond
  // its end (as an Image's is). out_height, out_width >= 1. Writes out_height x out_width x 3 bytes (RGB, packed) at out,
  // and nothing outside them.
  void resize(const PixelView& in, int out_height, int out_width, Interpolation interpolation, uint8_t* out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Mirrors each row of height x width x 3 packed bytes in place.
void flip_horizontal(uint8_t* pixels, int height, int width);

}  // namespace tessera
