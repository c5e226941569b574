// Masks of a whole mask group: a pure function of (function config, step, group). A loader draws the group's masks to know
// its common lengths, whichever tile it serves.
// Source: I-JEPA paper section 3 and Table 6; published sampler src/masks/multiblock.py (docs/fidelity.md).
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
};

// The published sampler for one batch, before and after truncation, from given sizes and a source of corners:
// next(range) returns a corner coordinate in [0, range), top before left. Consumes corners exactly as published: per
// image targets, then contexts; an attempt with at most min_keep patches is repeated; after 20 failures one more target
// region (from the last) is dropped. Error kFixConfig: no block after a bounded number of attempts.
Result<GroupMasks> reference_masks(const MaskConfig& masks, int grid_h, int grid_w, int images, BlockSize target, BlockSize context,
                                   const std::function<int(int)>& next, bool truncate = true);

// In a run. Errors: kFixConfig when the configuration cannot be satisfied.
Result<GroupMasks> draw_group_masks(const FunctionConfig& function, Step step, int64_t mask_group);

}  // namespace tessera::data
