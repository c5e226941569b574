// Masks of a whole mask group: a pure function of (function config, step, group). A loader draws the group's masks to know
// its common lengths, whichever tile it serves. A few microseconds per image.
// Source: I-JEPA paper section 3 and Table 6; published sampler src/masks/multiblock.py (docs/fidelity.md).
//
// kind multiblock: per image `targets` blocks of the group's target size, then `contexts` blocks of its context size, from
// which the targets are removed (unless allow_overlap). A context of <= min_keep patches is placed again.
//   mode reference  sizes from one uniform each; corners in [0, H-h) x [0, W-w), so that the last row and column are never
//                   reached; after each 20 failures one more target, from the last, stays in the context; contexts are
//                   cut to their first patches.
//   mode uniform    scale and aspect drawn independently; corners in [0, H-h] x [0, W-w]; after 20 failures the image's
//                   targets are drawn anew (100 times at most), so no context meets a target; contexts are cut to a
//                   uniform random subset. An image's draws depend on the other images by the common length alone.
// kind random: target a random 60 % of the patches, context the others. kind block: one target block of 60 % of the area,
// context the rest. kind rasterized: context a random quadrant, targets the three others (an odd grid's middle row and
// column are in none).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "common/block_size.h"
#include "common/ids.h"

namespace tessera::data {

using PatchList = std::vector<uint16_t>;  // ascending row * grid + column

struct GroupMasks {
  int context_length = 0;
  int target_length = 0;
  std::vector<std::vector<PatchList>> contexts;  // [context][image], all of context_length
  std::vector<std::vector<PatchList>> targets;   // [target][image], all of target_length
  int dropped_regions = 0;                       // times a target's complement was given up to find a context
  int redraws = 0;                               // placements of a context that were refused
  bool operator==(const GroupMasks&) const = default;
};

// The published sampler for one batch, before and after truncation, from given sizes and a source of corners:
// next(range) returns a corner coordinate in [0, range), top before left. Consumes corners exactly as published: per
// image targets, then contexts; an attempt with at most min_keep patches is repeated; after 20 failures one more target
// region (from the last) is dropped. Errors kFixConfig: a block that leaves no corner or never keeps enough patches.
Result<GroupMasks> reference_masks(const MaskConfig& masks, int grid_h, int grid_w, int images, BlockSize target, BlockSize context,
                                   const std::function<int(int)>& next, bool truncate = true);

// In a run: batch.tile_size x batch.tiles_per_mask_group images. context_length is the group's shortest, rounded down to a
// multiple of context_multiple (kept whole if it is below one). Errors kFixConfig: a grid over 256 x 256 or too small for
// the kind; blocks that leave no corner or never keep more than min_keep patches. Ends after a bounded number of draws.
Result<GroupMasks> draw_group_masks(const FunctionConfig& function, Step step, int64_t mask_group);

}  // namespace tessera::data
