// Internal to codec*.cpp: the wire form of masks. In memory a mask is a list of patch indices, image after image; on the
// wire it is what is smallest of: a rectangle's corner for each image (targets: 2 bytes an image), a bitmap (contexts: 25
// bytes an image of 14 x 14 patches), or, for lists that are neither, the indices themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/tessera.pb.h"

namespace tessera::proto {

struct MaskShape {
  int64_t images = 0;
  int64_t length = 0;  // patches of each image
  int64_t grid = 0;    // patches of a side
};

// unpack_mask(pack_mask(list)) == list for every list.
void pack_mask(const std::vector<uint16_t>& list, const MaskShape& shape, wire::MaskList* out);
// Empty when a bitmap or rectangles do not fit the shape: the check of the message's lengths refuses that. Never more than
// 2^24 patches.
std::vector<uint16_t> unpack_mask(const wire::MaskList& in, const MaskShape& shape);

}  // namespace tessera::proto
