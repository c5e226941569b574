// Parameters of a random resized crop: torchvision's RandomResizedCrop.get_params over any source of 32-bit words, so
// that the published generator and ours drive the same code. Pure.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/config.h"
#include "proto/messages.h"

namespace tessera::data {

// words.next_u32(): uniform 32-bit words. A uniform number is the low 24 bits / 2^24; a corner is a word modulo its range.
// Scale and log-ratio in fp32 as torch draws them, exp in double rounded to fp32, areas and roots in double, rounding
// half to even. Ten tries, then the central fallback. Returns the box inside width x height.
template <typename Words>
proto::CropBox draw_crop(int width, int height, const Pair& scale, const Pair& ratio, Words& words) {
  const auto uniform = [&](float low, float high) { return float(words.next_u32() & 0xFFFFFFu) * 0x1p-24f * (high - low) + low; };
  const float log_low = float(std::log(double(float(ratio[0])))), log_high = float(std::log(double(float(ratio[1]))));
  const double area = double(height) * double(width);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target_area = area * double(uniform(float(scale[0]), float(scale[1])));
    const double aspect = double(float(std::exp(double(uniform(log_low, log_high)))));
    const int w = int(std::nearbyint(std::sqrt(target_area * aspect))), h = int(std::nearbyint(std::sqrt(target_area / aspect)));
    if (w > 0 && w <= width && h > 0 && h <= height) {
      const int top = int(words.next_u32() % uint32_t(height - h + 1)), left = int(words.next_u32() % uint32_t(width - w + 1));
      return {top, left, h, w, false};
    }
  }
  const double in_ratio = double(width) / double(height);
  int w = width, h = height;
  if (in_ratio < std::min(ratio[0], ratio[1])) h = int(std::nearbyint(w / std::min(ratio[0], ratio[1])));
  else if (in_ratio > std::max(ratio[0], ratio[1])) w = int(std::nearbyint(h * std::max(ratio[0], ratio[1])));
  return {(height - h) / 2, (width - w) / 2, h, w, false};
}

}  // namespace tessera::data
