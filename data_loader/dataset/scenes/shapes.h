// The six shapes: where a ray meets them, and how they lie on the ground. Local coordinates, centre at the origin, axis y.
#pragma once

#include "data_loader/dataset/scenes/scene.h"

namespace tessera::data::scenes {

struct Hit {
  double t = 0;
  Vec normal;  // local, unit, towards the outside
};

// First meeting of origin + t direction, t > 0, with the shape at scale 1, from outside. False: none. The direction need
// not be of unit length; t is in its units.
bool meet(Shape shape, Vec origin, Vec direction, Hit* hit);

enum class Rest {
  kUpright,  // cube, tetrahedron: on a face; sphere: any
  kLying,    // cylinder, cone: on their side; torus: standing on its rim
};
Frame resting_frame(Shape shape, Rest rest);
// Height of the object's centre when it touches the ground.
double resting_height(const Object& object);

}  // namespace tessera::data::scenes
