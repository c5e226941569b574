// Three doubles, and the few functions that scenes need. Everything is built of + - * / and sqrt, which IEEE 754 rounds
// the same on every CPU; libm's sin, cos and pow do not (glibc picks variants by CPU), so they are not used.
#pragma once

#include <cmath>
#include <cstdint>

namespace tessera::data::scenes {

struct Vec {
  double x = 0, y = 0, z = 0;
};
inline Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vec operator*(Vec a, double s) { return {a.x * s, a.y * s, a.z * s}; }
inline Vec operator*(Vec a, Vec b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
inline double dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline Vec cross(Vec a, Vec b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
inline double length(Vec a) { return std::sqrt(dot(a, a)); }
inline Vec normalized(Vec a) { return a * (1.0 / length(a)); }
inline Vec mix(Vec a, Vec b, double t) { return a + (b - a) * t; }
inline double clamp01(double x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
// std::floor is a call without SSE4.1; this is the same for |x| < 2^62.
inline double floor_of(double x) {
  const double whole = double(int64_t(x));
  return whole > x ? whole - 1 : whole;
}
inline double fraction(double x) { return x - floor_of(x); }

// Rows are the axes of a local frame in world coordinates.
struct Frame {
  Vec x{1, 0, 0}, y{0, 1, 0}, z{0, 0, 1};
  Vec to_local(Vec v) const { return {dot(x, v), dot(y, v), dot(z, v)}; }
  Vec to_world(Vec v) const { return x * v.x + y * v.y + z * v.z; }
};

struct SinCos {
  double sin = 0, cos = 1;
};
// Of a number of whole turns, to about 1e-9.
inline SinCos sin_cos_turns(double turns) {
  const double quarters = fraction(turns) * 4;
  const int quadrant = int(quarters);
  const double a = (quarters - quadrant - 0.5) * 1.57079632679489661923, b = a * a;  // in [-pi/4, pi/4] around the quadrant's middle
  const double s = a * (1 - b / 6 * (1 - b / 20 * (1 - b / 42 * (1 - b / 72 * (1 - b / 110)))));
  const double c = 1 - b / 2 * (1 - b / 12 * (1 - b / 30 * (1 - b / 56 * (1 - b / 90))));
  const double half = 0.70710678118654752440, sum = (s + c) * half, difference = (c - s) * half;  // turned by pi/4
  switch (quadrant) {
    case 0: return {sum, difference};
    case 1: return {difference, -sum};
    case 2: return {-sum, -difference};
    default: return {-difference, sum};
  }
}

}  // namespace tessera::data::scenes
