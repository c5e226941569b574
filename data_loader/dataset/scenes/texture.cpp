#include "data_loader/dataset/scenes/texture.h"

#include <algorithm>

namespace tessera::data::scenes {
namespace {

double lattice(int x, int y, int z, uint32_t seed) {
  uint32_t h = uint32_t(x) * 0x9E3779B1u ^ uint32_t(y) * 0x85EBCA77u ^ uint32_t(z) * 0xC2B2AE3Du ^ seed;
  h ^= h >> 15, h *= 0x2C1B3C6Du, h ^= h >> 12, h *= 0x297A2D39u, h ^= h >> 15;
  return double(h >> 8) * 0x1p-24;
}

double smooth(double t) { return t * t * (3 - 2 * t); }

// 1 inside the pattern's second colour, 0 in its first.
double pattern_weight(Pattern pattern, Vec p, uint32_t seed) {
  switch (pattern) {
    case Pattern::kPlain: return 0;
    case Pattern::kStripes: return fraction(p.x + 0.35 * p.y) < 0.5 ? 1 : 0;
    case Pattern::kChecker: return (int64_t(std::floor(p.x)) + int64_t(std::floor(p.y + 0.001)) + int64_t(std::floor(p.z))) & 1 ? 1 : 0;
    case Pattern::kDots: {
      const double x = fraction(p.x) - 0.5, y = fraction(p.y + 0.5) - 0.5, z = fraction(p.z) - 0.5;
      return x * x + y * y + z * z < 0.11 ? 1 : 0;
    }
    case Pattern::kMarble: {
      const double n = value_noise(p, seed) + 0.5 * value_noise(p * 2.1, seed + 1);
      return smooth(clamp01((n - 0.45) * 2.5));
    }
    case Pattern::kBricks: {
      const double row = std::floor(p.z), x = fraction(p.x * 0.5 + 0.5 * fraction(row * 0.5) * 2), z = fraction(p.z), y = fraction(p.y + 0.06);
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
  const double fx = std::floor(at.x), fy = std::floor(at.y), fz = std::floor(at.z);
  const int x = int(fx), y = int(fy), z = int(fz);
  const double tx = smooth(at.x - fx), ty = smooth(at.y - fy), tz = smooth(at.z - fz);
  const auto edge = [&](int j, int k) {
    const double a = lattice(x, y + j, z + k, seed), b = lattice(x + 1, y + j, z + k, seed);
    return a + (b - a) * tx;
  };
  const double near = edge(0, 0) + (edge(1, 0) - edge(0, 0)) * ty, far = edge(0, 1) + (edge(1, 1) - edge(0, 1)) * ty;
  return near + (far - near) * tz;
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
  const double fine = value_noise(point * 5.0, material.noise_seed + 7), coarse = value_noise(point * 1.3, material.noise_seed + 9);
  const double grain = 1 + material.grain * (fine * clamp01(1.5 - 6 * blur) + coarse * 1.2 - 1.1);
  return mix(material.first, material.second, weight) * grain;
}

}  // namespace tessera::data::scenes
