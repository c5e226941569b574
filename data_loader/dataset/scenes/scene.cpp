#include "data_loader/dataset/scenes/scene.h"

#include <algorithm>
#include <numeric>

#include "common/philox.h"
#include "data_loader/dataset/scenes/shapes.h"

namespace tessera::data::scenes {
namespace {

constexpr int kMaxObjects = 6;
constexpr double kSingleShare = 0.3;  // of the pictures show one object; 2 to 6 share the rest evenly
constexpr double kNearest = 1.8, kFarthestNearest = 5.4, kDepthBehind = 4.0;

struct Draw {
  PhiloxStream words;
  double in(double low, double high) { return low + words.next_double() * (high - low); }
  bool chance(double p) { return words.next_double() < p; }
  int below(int range) { return int(words.next_below(uint32_t(range))); }
};

// A colour by hue, saturation and value, in the linear space that lights add up in.
Vec draw_colour(Draw& draw) {
  const double hue = draw.in(0, 6), saturation = draw.in(0.15, 0.95), value = draw.in(0.25, 1.0);
  const auto channel = [&](double offset) {
    const double h = fraction((hue + offset) / 6) * 6;
    const double wave = clamp01(std::min(h, 4 - h));
    const double shown = value * (1 - saturation * wave);
    return shown * shown;
  };
  return {channel(5), channel(3), channel(1)};
}

double brightness(Vec colour) { return 0.3 * colour.x + 0.6 * colour.y + 0.1 * colour.z; }

Material draw_material(Draw& draw, double plain_share) {
  Material out;
  out.pattern = draw.chance(plain_share) ? Pattern::kPlain : Pattern(1 + draw.below(kPatternCount - 1));
  out.first = draw_colour(draw);
  out.second = draw_colour(draw);
  for (int i = 0; i < 4 && std::abs(brightness(out.first) - brightness(out.second)) < 0.12; ++i) out.second = draw_colour(draw);
  out.grain = draw.in(0.08, 0.35);
  out.noise_seed = draw.words.next_u32();
  return out;
}

Frame turned(Frame frame, double turns) {  // about the world's y
  const SinCos angle = sin_cos_turns(turns);
  const auto turn = [&](Vec v) { return Vec{angle.cos * v.x + angle.sin * v.z, v.y, angle.cos * v.z - angle.sin * v.x}; };
  return {turn(frame.x), turn(frame.y), turn(frame.z)};
}

Object draw_object(Draw& draw, Shape shape) {
  Object out;
  out.shape = shape;
  out.scale = draw.in(0.92, 1.08);
  out.frame = turned(resting_frame(shape, draw.chance(0.3) ? Rest::kLying : Rest::kUpright), draw.in(0, 1));
  out.material = draw_material(draw, 0.5);
  out.material.period = draw.in(0.35, 0.8);
  out.material.gloss = draw.chance(0.5) ? draw.in(0.2, 0.9) : 0.05;
  out.material.gloss_squarings = 3 + draw.below(4);
  return out;
}

// Uniform in the logarithm, so that each step of the label is as visible as the others: near * (far / near)^t by halving the
// interval (square roots only: vector3.h says why).
double draw_distance(Draw& draw) {
  double low = kNearest, high = kFarthestNearest;
  const uint32_t bits = draw.words.next_u32();
  for (int i = 0; i < 24; ++i) (bits >> i & 1 ? low : high) = std::sqrt(low * high);
  return low;
}

struct OnScreen {
  double u = 0, v = 0, radius = 0;  // in half widths of the picture
};
OnScreen project(const Scene& scene, const Object& object) {
  const Vec local = scene.camera.to_local(object.centre - scene.eye);
  const double width = local.z * scene.view;
  return {local.x / width, local.y / width, object.scale / width};
}

// Whether the newest object can be seen whole enough, apart from the others, and behind the nearest.
bool stands_well(const Scene& scene, const std::vector<OnScreen>& screen, const Object& object, const OnScreen& at) {
  if (std::abs(at.u) + 0.8 * at.radius > 1 || std::abs(at.v) + 0.8 * at.radius > 1) return false;
  if (length(object.centre - scene.eye) < scene.distance) return false;
  for (size_t i = 0; i < screen.size(); ++i) {
    const Vec apart = object.centre - scene.objects[i].centre;
    const double reach = object.scale + scene.objects[i].scale;
    if (apart.x * apart.x + apart.z * apart.z < reach * reach * 0.9) return false;
    const double du = at.u - screen[i].u, dv = at.v - screen[i].v, near = 0.62 * (at.radius + screen[i].radius);
    if (du * du + dv * dv < near * near) return false;
  }
  return true;
}

void aim_camera(Scene* scene, double ground_distance, double ahead) {
  const Vec target{0, 0.5, ground_distance + ahead};
  scene->camera.z = normalized(target - scene->eye);
  scene->camera.x = normalized(cross({0, 1, 0}, scene->camera.z));
  scene->camera.y = cross(scene->camera.z, scene->camera.x);
}

// Places the objects; false if some object found no place.
bool place_objects(Draw& draw, Scene* scene, std::vector<Object> objects, double shrink) {
  std::vector<OnScreen> screen;
  scene->objects.clear();
  for (Object& object : objects) object.scale *= shrink;
  const double height = resting_height(objects[0]), drop = scene->eye.y - height;
  const double near_ground = std::sqrt(std::max(1.0, scene->distance * scene->distance - drop * drop));
  aim_camera(scene, near_ground, objects.size() == 1 ? draw.in(-0.4, 0.9) : draw.in(0.4, 1.8));
  for (size_t i = 0; i < objects.size(); ++i) {
    bool placed = false;
    for (int attempt = 0; attempt < 40 && !placed; ++attempt) {
      Object& object = objects[i];
      const double ground = i == 0 ? near_ground : near_ground + draw.in(0, kDepthBehind);
      const double sideways = draw.in(-0.85, 0.85) * scene->view * ground;
      object.centre = {sideways, resting_height(object), ground};
      if (i == 0) object.centre.z = std::sqrt(std::max(0.5, ground * ground - sideways * sideways)), scene->distance = length(object.centre - scene->eye);
      const OnScreen at = project(*scene, object);
      if (!stands_well(*scene, screen, object, at)) continue;
      screen.push_back(at);
      scene->objects.push_back(object);
      placed = true;
    }
    if (!placed) return false;
  }
  return true;
}

void draw_surroundings(Draw& draw, Scene* scene) {
  scene->ground = draw_material(draw, 0.1);
  // Surroundings are quiet, objects are not: what an image's ground and sky share with each other tells nothing about what
  // stands there, and a model that predicts hidden blocks would learn little else from loud ones.
  const auto quiet = [](Vec colour, double level) { return mix(colour * (level / std::max(0.05, brightness(colour))), Vec{1, 1, 1} * level, 0.85); };
  scene->ground.first = quiet(scene->ground.first, draw.in(0.25, 0.35));
  scene->ground.second = quiet(scene->ground.second, draw.in(0.15, 0.25));
  scene->ground.period = draw.in(0.6, 1.6);
  scene->ground_frame = turned(Frame{}, draw.in(0, 1));
  scene->sky_low = quiet(draw_colour(draw), draw.in(0.45, 0.6)), scene->sky_high = quiet(draw_colour(draw), draw.in(0.3, 0.45));
  scene->sky_seed = draw.words.next_u32();
  scene->sky_clouds = draw.in(0.2, 0.7);
  const SinCos around = sin_cos_turns(draw.in(0, 1));
  const double up = draw.in(0.55, 1.4);
  scene->to_light = normalized({around.sin, up, around.cos});
  const Vec tint = mix({1, 0.93, 0.82}, {0.85, 0.93, 1}, draw.in(0, 1));
  scene->light = tint * draw.in(1.0, 1.3);
  scene->ambient = Vec{1, 1, 1} * draw.in(0.3, 0.42);
}

}  // namespace

int scene_class(uint64_t seed, uint64_t index) {
  PhiloxStream words(seed, Purpose::kScenes, index / kShapeCount, 1);
  std::array<int, kShapeCount> order;
  std::iota(order.begin(), order.end(), 0);
  for (int i = kShapeCount - 1; i > 0; --i) std::swap(order[size_t(i)], order[words.next_below(uint32_t(i) + 1)]);
  return order[index % kShapeCount];
}

Scene draw_scene(uint64_t seed, uint64_t index) {
  Draw draw{PhiloxStream(seed, Purpose::kScenes, index, 0)};
  Scene scene;
  scene.label = scene_class(seed, index);
  const int count = draw.chance(kSingleShare) ? 1 : 2 + draw.below(kMaxObjects - 1);
  const double distance = draw_distance(draw);
  scene.eye = {0, draw.in(2.0, 2.3), 0};
  draw_surroundings(draw, &scene);
  std::vector<Object> objects;
  for (int i = 0; i < count; ++i) objects.push_back(draw_object(draw, Shape(scene.label)));
  // Count and distance stay as drawn; crowded pictures get smaller objects until all fit.
  for (double shrink = 1;; shrink *= 0.95) {
    for (int attempt = 0; attempt < 4; ++attempt) {
      scene.distance = distance;
      if (place_objects(draw, &scene, objects, shrink)) return scene;
    }
  }
}

}  // namespace tessera::data::scenes
