// Ray-casts a scene. Pure: equal scenes give equal bytes, on any CPU and for any thread.
#pragma once

#include <cstdint>

#include "data_loader/dataset/scenes/scene.h"

namespace tessera::data::scenes {

// Writes size x size x 3 bytes, rows from the top. One ray a pixel, four more where an outline, a shadow's edge or strong
// contrast crosses it.
void render(const Scene& scene, int size, uint8_t* rgb);

}  // namespace tessera::data::scenes
