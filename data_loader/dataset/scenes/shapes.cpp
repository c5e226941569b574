#include "data_loader/dataset/scenes/shapes.h"

#include <algorithm>
#include <limits>
#include <span>

namespace tessera::data::scenes {
namespace {

constexpr double kSphereRadius = 0.85;
constexpr double kCubeHalf = 0.68;
constexpr double kConeRadius = 0.8, kConeHalfHeight = 0.8;  // apex up
constexpr double kCylinderRadius = 0.58, kCylinderHalfHeight = 0.82;
constexpr double kTorusMajor = 0.68, kTorusMinor = 0.3;
constexpr double kTetrahedronRadius = 1.15, kTetrahedronInner = kTetrahedronRadius / 3;
constexpr double kFar = std::numeric_limits<double>::infinity();

// Outward normals of the faces and corners of the regular tetrahedron that stands on a face: corners are -3 x inner x normal.
constexpr double kS2 = 1.41421356237309504880, kS6 = 2.44948974278317809820;
constexpr Vec kTetrahedronFaces[4] = {{0, -1, 0}, {2 * kS2 / 3, 1.0 / 3, 0}, {-kS2 / 3, 1.0 / 3, kS6 / 3}, {-kS2 / 3, 1.0 / 3, -kS6 / 3}};
constexpr Vec kCubeFaces[6] = {{1, 0, 0}, {-1, 0, 0}, {0, 1, 0}, {0, -1, 0}, {0, 0, 1}, {0, 0, -1}};

// The part of a ray that is inside a convex body, narrowed face by face.
struct Span {
  double enter = -kFar, leave = kFar;
  Vec normal;
  void cut(double from, double to, Vec normal_at_from) {
    if (from > enter) enter = from, normal = normal_at_from;
    leave = std::min(leave, to);
  }
  void halfspace(Vec face, double height, Vec origin, Vec direction) {
    const double along = dot(face, direction), outside = dot(face, origin) - height;
    if (along < 0) cut(-outside / along, kFar, face);
    else if (along > 0) leave = std::min(leave, -outside / along);
    else if (outside > 0) leave = -kFar;
  }
  bool done(Hit* hit) const {
    if (!(enter < leave) || enter <= 0) return false;
    *hit = {enter, normal};
    return true;
  }
};

bool meet_sphere(Vec o, Vec d, Hit* hit) {
  const double a = dot(d, d), b = dot(o, d), c = dot(o, o) - kSphereRadius * kSphereRadius, root = b * b - a * c;
  if (root < 0) return false;
  const double t = (-b - std::sqrt(root)) / a;
  if (t <= 0) return false;
  *hit = {t, (o + d * t) * (1 / kSphereRadius)};
  return true;
}

bool meet_planes(std::span<const Vec> faces, double height, Vec o, Vec d, Hit* hit) {
  Span span;
  for (const Vec& face : faces) span.halfspace(face, height, o, d);
  return span.done(hit);
}

bool meet_cylinder(Vec o, Vec d, Hit* hit) {
  Span span;
  span.halfspace({0, 1, 0}, kCylinderHalfHeight, o, d);
  span.halfspace({0, -1, 0}, kCylinderHalfHeight, o, d);
  const double a = d.x * d.x + d.z * d.z, b = o.x * d.x + o.z * d.z, c = o.x * o.x + o.z * o.z - kCylinderRadius * kCylinderRadius;
  const double root = b * b - a * c;
  if (root < 0 || (a == 0 && c > 0)) return false;
  if (a > 0) {
    const double s = std::sqrt(root), t = (-b - s) / a;
    span.cut(t, (-b + s) / a, {(o.x + d.x * t) / kCylinderRadius, 0, (o.z + d.z * t) / kCylinderRadius});
  }
  return span.done(hit);
}

// x^2 + z^2 <= (k (top - y))^2 below the apex, and above the base.
bool meet_cone(Vec o, Vec d, Hit* hit) {
  constexpr double slope = kConeRadius / (2 * kConeHalfHeight), slope2 = slope * slope;
  const double down = kConeHalfHeight - o.y;
  const double a = d.x * d.x + d.z * d.z - slope2 * d.y * d.y, b = o.x * d.x + o.z * d.z + slope2 * down * d.y, c = o.x * o.x + o.z * o.z - slope2 * down * down;
  const double root = b * b - a * c;
  Hit best{kFar, {}};
  const auto offer = [&](double t, Vec normal) {
    if (t > 0 && t < best.t) best = {t, normal};
  };
  if (root >= 0 && a != 0) {
    const double s = std::sqrt(root);
    for (const double t : {(-b - s) / a, (-b + s) / a}) {
      const Vec p = o + d * t;
      if (p.y >= -kConeHalfHeight && p.y <= kConeHalfHeight && t > 0) offer(t, normalized({p.x, slope2 * (kConeHalfHeight - p.y) + 1e-12, p.z}));
    }
  }
  if (d.y != 0) {
    const double t = (-kConeHalfHeight - o.y) / d.y;
    const Vec p = o + d * t;
    if (p.x * p.x + p.z * p.z <= kConeRadius * kConeRadius) offer(t, {0, -1, 0});
  }
  if (best.t == kFar) return false;
  *hit = best;
  return true;
}

// Sphere tracing of the signed distance.
bool meet_torus(Vec o, Vec d, Hit* hit) {
  const double unit = length(d), outer = kTorusMajor + kTorusMinor;
  const Vec step = d * (1 / unit);
  const double b = dot(o, step), root = b * b - dot(o, o) + outer * outer;
  if (root < 0) return false;
  const double s = std::sqrt(root), end = -b + s;
  double t = std::max(0.0, -b - s);
  for (int i = 0; i < 64 && t < end; ++i) {
    const Vec p = o + step * t;
    const double ring = std::sqrt(p.x * p.x + p.z * p.z), q = ring - kTorusMajor, distance = std::sqrt(q * q + p.y * p.y) - kTorusMinor;
    if (distance < 1e-4) {
      if (ring == 0) return false;
      const double k = q / ring;
      *hit = {t / unit, normalized({p.x * k, p.y, p.z * k})};
      return t > 0;
    }
    t += distance;
  }
  return false;
}

}  // namespace

double bounding_radius(Shape shape) {
  switch (shape) {
    case Shape::kSphere: return kSphereRadius;
    case Shape::kCube: return kCubeHalf * 1.7320508075688773;
    case Shape::kCone: return 1.1313708498984762;  // sqrt(radius^2 + half height^2)
    case Shape::kCylinder: return 1.0044;          // sqrt(radius^2 + half height^2), rounded up
    case Shape::kTorus: return kTorusMajor + kTorusMinor;
    case Shape::kTetrahedron: return kTetrahedronRadius;
  }
  return 1;
}

bool meet(Shape shape, Vec origin, Vec direction, Hit* hit) {
  switch (shape) {
    case Shape::kSphere: return meet_sphere(origin, direction, hit);
    case Shape::kCube: return meet_planes(kCubeFaces, kCubeHalf, origin, direction, hit);
    case Shape::kCone: return meet_cone(origin, direction, hit);
    case Shape::kCylinder: return meet_cylinder(origin, direction, hit);
    case Shape::kTorus: return meet_torus(origin, direction, hit);
    case Shape::kTetrahedron: return meet_planes(kTetrahedronFaces, kTetrahedronInner, origin, direction, hit);
  }
  return false;
}

Frame resting_frame(Shape shape, Rest rest) {
  if (rest == Rest::kUpright || shape == Shape::kSphere || shape == Shape::kCube || shape == Shape::kTetrahedron) return {};
  if (shape != Shape::kCone) return {{0, -1, 0}, {1, 0, 0}, {0, 0, 1}};  // axis along x
  // Along its side: the axis rises from the ground by the cone's half angle, apex first.
  const double side = std::sqrt(kConeRadius * kConeRadius + 4 * kConeHalfHeight * kConeHalfHeight);
  const double rise = kConeRadius / side, along = 2 * kConeHalfHeight / side;
  return {{rise, along, 0}, {along, -rise, 0}, {0, 0, 1}};
}

double resting_height(const Object& object) {
  const Vec axis = object.frame.y;
  const double flat = std::sqrt(std::max(0.0, 1 - axis.y * axis.y));
  const auto lowest = [&]() -> double {
    switch (object.shape) {
      case Shape::kSphere: return kSphereRadius;
      case Shape::kCube: return kCubeHalf;
      case Shape::kCone: return std::max(-kConeHalfHeight * axis.y, kConeHalfHeight * axis.y + kConeRadius * flat);
      case Shape::kCylinder: return kCylinderHalfHeight * std::abs(axis.y) + kCylinderRadius * flat;
      case Shape::kTorus: return kTorusMajor * flat + kTorusMinor;
      case Shape::kTetrahedron: return kTetrahedronInner;
    }
    return 1;
  };
  return lowest() * object.scale;
}

}  // namespace tessera::data::scenes
