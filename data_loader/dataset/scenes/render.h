// Ray-casts a scene. Pure: equal scenes give equal bytes, on any CPU and for any thread.
#pragma once

#include <cstdint>

#include "data_loader/dataset/scenes/scene.h"

namespace tessera::data::scenes {

// Writes size x size x 3 bytes, rows from the top. One ray a pixel, three more where an outline or the edge of a shadow crosses
// it, one more at strong contrast.
void render(const Scene& scene, int size, uint8_t* rgb);

// Which object covers each pixel: size x size bytes, rows from the top; the index into scene.objects that the ray through the pixel's
// centre meets first, kNoObject where it meets ground or sky.
inline constexpr uint8_t kNoObject = 255;
void render_objects(const Scene& scene, int size, uint8_t* objects);

}  // namespace tessera::data::scenes
