#include "data_loader/dataset/scenes/render.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "data_loader/dataset/scenes/shapes.h"
#include "data_loader/dataset/scenes/texture.h"

namespace tessera::data::scenes {
namespace {

constexpr int kGround = -1, kSky = -2;
constexpr double kGroundEnd = 40;  // beyond it the ground is haze

struct Sample {
  Vec colour;
  int surface = kSky;  // object index, kGround or kSky
  bool lit = true;
};

// An object as rays see it.
struct Body {
  const Object* object;
  double radius2;  // of its bounding sphere in the world, squared
};

class Caster {
 public:
  Caster(const Scene& scene, int size) : scene_(scene), pixel_(2 * scene.view / size) {
    for (const Object& object : scene.objects) {
      const double radius = bounding_radius(object.shape) * object.scale;
      bodies_.push_back({&object, radius * radius});
    }
  }

  Sample trace(double u, double v) const {
    const Vec direction = direction_to(u, v);
    const Meeting first = meet_first(direction);
    const Vec point = scene_.eye + direction * first.t;
    Sample out;
    out.surface = first.surface;
    if (out.surface == kSky) out.colour = sky(direction);
    else if (out.surface == kGround) out.colour = ground(point, direction, first.t, &out.lit);
    else out.colour = surface(scene_.objects[size_t(out.surface)], first.hit, point, direction, first.t, &out.lit);
    return out;
  }

  // What trace() meets there, without its colour.
  int surface_at(double u, double v) const { return meet_first(direction_to(u, v)).surface; }

 private:
  struct Meeting {
    double t = std::numeric_limits<double>::infinity();
    Hit hit;  // of an object
    int surface = kSky;
  };

  Vec direction_to(double u, double v) const { return normalized(scene_.camera.z + scene_.camera.x * (u * scene_.view) + scene_.camera.y * (v * scene_.view)); }

  Meeting meet_first(Vec direction) const {
    Meeting out;
    for (size_t i = 0; i < bodies_.size(); ++i) {
      Hit hit;
      if (reach(bodies_[i], scene_.eye, direction, &hit) && hit.t < out.t) out.t = hit.t, out.hit = hit, out.surface = int(i);
    }
    if (direction.y < 0 && -scene_.eye.y / direction.y < std::min(out.t, kGroundEnd)) out.t = -scene_.eye.y / direction.y, out.surface = kGround;
    return out;
  }

  // In object space; t keeps the world's units because the direction is scaled along.
  static bool reach(const Body& body, Vec origin, Vec direction, Hit* hit) {
    const Vec from = origin - body.object->centre;
    const double along = dot(from, direction), root = along * along - dot(from, from) + body.radius2;
    if (root < 0 || (along > 0 && along * along > root)) return false;  // beside it, or behind
    const double shrink = 1 / body.object->scale;
    return meet(body.object->shape, body.object->frame.to_local(from) * shrink, body.object->frame.to_local(direction) * shrink, hit);
  }

  bool in_shadow(Vec point) const {
    Hit hit;
    return std::any_of(bodies_.begin(), bodies_.end(), [&](const Body& body) { return reach(body, point, scene_.to_light, &hit); });
  }

  // How open to the sky a ground point is: dark rims under the objects.
  double openness(Vec point) const {
    double open = 1;
    for (const Body& body : bodies_) {
      const Vec from = point - body.object->centre;
      const double near = body.radius2 / (from.x * from.x + from.z * from.z + 0.15);
      open *= 1 - 0.45 * clamp01(near * near);
    }
    return open;
  }

  Vec ground(Vec point, Vec direction, double t, bool* lit) const {
    const double blur = t * pixel_ / std::max(0.05, -direction.y);
    const Vec albedo = material_colour(scene_.ground, scene_.ground_frame.to_local(point), blur);
    *lit = !in_shadow(point + Vec{0, 1e-4, 0});
    const Vec light = scene_.ambient * openness(point) + (*lit ? scene_.light * scene_.to_light.y : Vec{});
    const double haze = clamp01((t - 10) / (kGroundEnd - 10));
    return mix(albedo * light, sky({direction.x, 0, direction.z}), haze * haze);
  }

  Vec surface(const Object& object, const Hit& hit, Vec point, Vec direction, double t, bool* lit) const {
    const Vec normal = object.frame.to_world(hit.normal);
    const Vec local = object.frame.to_local(point - object.centre) * (1 / object.scale);
    const Vec albedo = material_colour(object.material, local, t * pixel_ / object.scale);
    const double facing = dot(normal, scene_.to_light);
    *lit = facing > 0 && !in_shadow(point + normal * 1e-3);
    Vec light = scene_.ambient * (0.7 + 0.3 * normal.y);
    if (*lit) light = light + scene_.light * facing;
    Vec colour = albedo * light;
    if (*lit) {
      const Vec half = normalized(scene_.to_light - direction);
      double shine = std::max(0.0, dot(normal, half));
      for (int i = 0; i < object.material.gloss_squarings; ++i) shine *= shine;
      colour = colour + scene_.light * (object.material.gloss * shine);
    }
    return colour;
  }

  Vec sky(Vec direction) const {
    const Vec base = mix(scene_.sky_low, scene_.sky_high, clamp01(direction.y * 1.8 + 0.1));
    const double clouds = value_noise({direction.x * 5, direction.y * 14, direction.z * 5}, scene_.sky_seed) - 0.5;
    return base * (1 + 1.3 * scene_.sky_clouds * clouds);
  }

  const Scene& scene_;
  double pixel_;  // width of a pixel at distance 1
  std::vector<Body> bodies_;
};

// Square root for gamma: within a few per cent of 2.2, and exact everywhere.
uint8_t to_byte(double linear) { return uint8_t(std::sqrt(clamp01(linear)) * 255 + 0.5); }

enum class Step { kNone, kContrast, kOutline };
Step step_between(const Sample& a, const Sample& b) {
  if (a.surface != b.surface || a.lit != b.lit) return Step::kOutline;
  const Vec d = a.colour - b.colour;
  return std::abs(d.x) + std::abs(d.y) + std::abs(d.z) > 0.3 ? Step::kContrast : Step::kNone;
}

// Calls use(pixel, u, v) with each pixel's centre on the screen.
template <typename Use>
void for_each_pixel(int size, const Use& use) {
  for (int y = 0; y < size; ++y)
    for (int x = 0; x < size; ++x) use(size_t(y) * size_t(size) + size_t(x), (2 * (x + 0.5)) / size - 1, 1 - (2 * (y + 0.5)) / size);
}

// The strongest step to a pixel's four neighbours.
Step step_around(const std::vector<Sample>& centre, int size, int x, int y) {
  const size_t here = size_t(y) * size_t(size) + size_t(x);
  Step out = Step::kNone;
  if (x > 0) out = std::max(out, step_between(centre[here], centre[here - 1]));
  if (x + 1 < size) out = std::max(out, step_between(centre[here], centre[here + 1]));
  if (y > 0) out = std::max(out, step_between(centre[here], centre[here - size_t(size)]));
  if (y + 1 < size) out = std::max(out, step_between(centre[here], centre[here + size_t(size)]));
  return out;
}

}  // namespace

void render(const Scene& scene, int size, uint8_t* rgb) {
  const Caster caster(scene, size);
  std::vector<Sample> centre(size_t(size) * size_t(size));
  const auto at = [&](double x, double y) { return caster.trace((2 * x) / size - 1, 1 - (2 * y) / size); };
  for_each_pixel(size, [&](size_t pixel, double u, double v) { centre[pixel] = caster.trace(u, v); });
  for (int y = 0; y < size; ++y) {
    for (int x = 0; x < size; ++x) {
      const size_t here = size_t(y) * size_t(size) + size_t(x);
      const Step step = step_around(centre, size, x, y);
      const int more = step == Step::kOutline ? 3 : step == Step::kContrast ? 1 : 0;
      constexpr double kAround[3][2] = {{0.2, 0.3}, {0.75, 0.2}, {0.55, 0.85}};
      Vec colour = centre[here].colour;
      for (int i = 0; i < more; ++i) colour = colour + at(x + kAround[i][0], y + kAround[i][1]).colour;
      colour = colour * (1.0 / (more + 1));
      rgb[here * 3] = to_byte(colour.x), rgb[here * 3 + 1] = to_byte(colour.y), rgb[here * 3 + 2] = to_byte(colour.z);
    }
  }
}

void render_objects(const Scene& scene, int size, uint8_t* objects) {
  const Caster caster(scene, size);
  for_each_pixel(size, [&](size_t pixel, double u, double v) {
    const int surface = caster.surface_at(u, v);
    objects[pixel] = surface >= 0 ? uint8_t(surface) : kNoObject;
  });
}

}  // namespace tessera::data::scenes
