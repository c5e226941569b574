// What is in a procedural picture: drawn from (seed, index) alone, before any pixel.
//
// Every object of a picture has the class's shape; count, sizes, poses, places, colours, materials, ground, background and
// light are drawn independently of it, so that neither colour nor brightness tells the class. Classes are balanced: each
// run of six pictures holds each class once, in drawn order.
//
// World: y up, ground y = 0, the camera above the origin, looking along +z and down. One unit is about an object's radius.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "data_loader/dataset/scenes/vector3.h"

namespace tessera::data::scenes {

enum class Shape : int { kSphere = 0, kCube = 1, kCone = 2, kCylinder = 3, kTorus = 4, kTetrahedron = 5 };
inline constexpr int kShapeCount = 6;
inline constexpr std::array<const char*, kShapeCount> kShapeNames{"sphere", "cube", "cone", "cylinder", "torus", "tetrahedron"};

enum class Pattern : int {
  kPlain = 0,    // one colour
  kStripes = 1,
  kChecker = 2,
  kDots = 3,
  kMarble = 4,   // smooth noise
  kBricks = 5,   // ground: rows of bricks; objects: rings
};
inline constexpr int kPatternCount = 6;

struct Material {
  Pattern pattern = Pattern::kPlain;
  Vec first, second;       // linear colours
  double period = 0.5;     // of the pattern, in the object's own units
  double grain = 0.1;      // strength of fine noise
  double gloss = 0;        // strength of the highlight
  int gloss_squarings = 4; // the highlight's exponent is 2 to this
  uint32_t noise_seed = 0;
};

struct Object {
  Shape shape = Shape::kSphere;
  Vec centre;
  double scale = 1;
  Frame frame;
  Material material;
};

struct Scene {
  int label = 0;          // a Shape
  double distance = 0;    // from the camera to the centre of the nearest object
  Vec eye;
  Frame camera;           // x right, y up, z forward
  double view = 0.55;     // tangent of half the field of view
  std::vector<Object> objects;  // 1 to 6; the nearest first
  Material ground;
  Frame ground_frame;     // turns the pattern about y
  Vec sky_low, sky_high;
  uint32_t sky_seed = 0;
  double sky_clouds = 0.3;
  Vec to_light;           // unit
  Vec light, ambient;
};

// Pure. index: the picture's number in the dataset.
Scene draw_scene(uint64_t seed, uint64_t index);

// The class alone.
int scene_class(uint64_t seed, uint64_t index);

// Radius of the sphere around the shape's own centre that holds it, at scale 1.
double bounding_radius(Shape shape);

}  // namespace tessera::data::scenes
