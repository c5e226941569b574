// Solid textures: the colour of a material at a point.
#pragma once

#include "data_loader/dataset/scenes/scene.h"

namespace tessera::data::scenes {

// Smooth noise in [0, 1], cells of side 1.
double value_noise(Vec at, uint32_t seed);

// point: in the material's own space. blur: width of a pixel there; patterns finer than that fade to their mean, so that
// a far ground does not flicker.
Vec material_colour(const Material& material, Vec point, double blur);

}  // namespace tessera::data::scenes
