#include "data_loader/dataset/scenes/texture.h"

#include <algorithm>

namespace tessera::data::scenes {
namespace {

constexpr uint32_t kStepX = 0x9E3779B1u, kStepY = 0x85EBCA77u, kStepZ = 0xC2B2AE3Du;

// A corner's value in [0, 1) from its hashed coordinates.
double corner(uint32_t h) {
  h ^= h >> 15, h *= 0x2C1B3C6Du;
  return double(int32_t(h >> 8)) * 0x1p-24;
}

double smooth(double t) { return t * t * (3 - 2 * t); }

// 1 inside the pattern's second colour, 0 in its first.
double pattern_weight(Pattern pattern, Vec p, uint32_t seed) {
  switch (pattern) {
    case Pattern::kPlain: return 0;
    case Pattern::kStripes: return fraction(p.x + 0.35 * p.y) < 0.5 ? 1 : 0;
    case Pattern::kChecker: return (int64_t(floor_of(p.x)) + int64_t(floor_of(p.y + 0.001)) + int64_t(floor_of(p.z))) & 1 ? 1 : 0;
    case Pattern::kDots: {
      const double x = fraction(p.x) - 0.5, y = fraction(p.y + 0.5) - 0.5, z = fraction(p.z) - 0.5;
      return x * x + y * y + z * z < 0.11 ? 1 : 0;
    }
    case Pattern::kMarble: {
      const double n = value_noise(p, seed) + 0.5 * value_noise(p * 2.1, seed + 1);
      return smooth(clamp01((n - 0.45) * 2.5));
    }
    case Pattern::kBricks: {
      const double row = floor_of(p.z), x = fraction(p.x * 0.5 + 0.5 * fraction(row * 0.5) * 2), z = fraction(p.z), y = fraction(p.y + 0.06);
      return x < 0.06 || z < 0.12 || y < 0.12 ? 1 : 0;
    }
  }
  return 0;
}

double mean_weight(Pattern pattern) {
  switch (pattern) {
    case Pattern::kPlain: return 0;
    case Pattern::kDots: return 0.35;
    case Pattern::kBricks: return 0.2;
    default: return 0.5;
  }
}

}  // namespace

double value_noise(Vec at, uint32_t seed) {
  const double fx = floor_of(at.x), fy = floor_of(at.y), fz = floor_of(at.z);
  const double tx = smooth(at.x - fx), ty = smooth(at.y - fy), tz = smooth(at.z - fz);
  const uint32_t x = uint32_t(int64_t(fx)) * kStepX ^ seed, y = uint32_t(int64_t(fy)) * kStepY, z = uint32_t(int64_t(fz)) * kStepZ;
  const uint32_t next_x = (uint32_t(int64_t(fx)) + 1) * kStepX ^ seed;
  const auto edge = [&](uint32_t j, uint32_t k) {
    const uint32_t row = (y + j * kStepY) ^ (z + k * kStepZ);
    const double a = corner(x ^ row), b = corner(next_x ^ row);
    return a + (b - a) * tx;
  };
  const auto face = [&](uint32_t k) {
    const double low = edge(0, k);
    return ty == 0 ? low : low + (edge(1, k) - low) * ty;  // the ground is flat: half the corners
  };
  const double near = face(0);
  return near + (face(1) - near) * tz;
}

Vec material_colour(const Material& material, Vec point, double blur) {
  const Vec p = point * (1 / material.period);
  double weight = 0;
  if (material.pattern != Pattern::kPlain) {
    const double seen = clamp01(1.6 - 2.0 * blur / material.period);  // 1: the pattern, 0: its mean
    const double mean = mean_weight(material.pattern);
    weight = mean;
    if (seen > 0) weight += (pattern_weight(material.pattern, p, material.noise_seed) - mean) * seen;
  }
  const double cloth = value_noise(point * 3.3, material.noise_seed + 7) - 0.5;
  const double grain = 1 + 2 * material.grain * cloth * clamp01(1.5 - 4 * blur);
  return mix(material.first, material.second, weight) * grain;
}

}  // namespace tessera::data::scenes
