// The masks of a mask group of a step: what function.masks says, with Philox words keyed by (seed, step, group, image).
// Pure: whichever loader serves whichever tile of the group draws the same. About a microsecond per image.
//
// Kinds (paper Table 6): multiblock; random (target: a random 60 % of the patches, context: the others); block (one
// target block of 60 % of the area, context: the rest); rasterized (context: a random quadrant, targets: the other three;
// an odd grid's middle row and column are unused).
#pragma once

#include "common/config.h"
#include "common/ids.h"
#include "data_loader/masking/multiblock.h"

namespace tessera {

// Masks per image of a config: the number of lists in GroupMasks and TileHeader.
struct MaskCounts {
  int contexts = 0;
  int targets = 0;
};
MaskCounts mask_counts(const MaskConfig& masks);

// Draws all images of a group: batch.tile_size x batch.tiles_per_mask_group. mask_group counts from 0 within the step.
// Errors kFixConfig: as multiblock.h; a grid over 256 x 256 or too small for the kind.
Result<GroupMasks> draw_group_masks(const FunctionConfig& function, Step step, int64_t mask_group);

// The part of a group's masks that images [first, first + count) have; lengths stay those of the group.
GroupMasks slice_masks(const GroupMasks& group, int first, int count);

}  // namespace tessera
