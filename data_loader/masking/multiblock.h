// Multi-block masks of a group of images from given block sizes and a source of corners. Pure.
// Source: I-JEPA paper section 3; published sampler src/masks/multiblock.py; goldens/README "masks/".
//
// Per image: `targets` blocks, then `contexts` blocks from which the targets are removed (unless allow_overlap). A context
// of <= min_keep patches is placed again.
//   reference  corners in [0, H-h) x [0, W-w), so the last row and column are never reached; after each 20 failures one
//              more target, from the last, is no longer removed; contexts are cut to their first patches.
//   uniform    corners in [0, H-h] x [0, W-w]; after 20 failures the image's targets are drawn again (100 times at most);
//              contexts are cut to a random subset. No context ever meets a target.
// All contexts of the group are cut to its shortest, rounded down to a multiple of context_multiple.
#pragma once

#include <cstdint>
#include <vector>

#include "common/block_size.h"
#include "common/result.h"

namespace tessera {

// Masks of a mask group. Lists are ascending patch indices (row * grid_w + column), image-major as in TileHeader: context
// j of image i is contexts[j][i * context_length ... ).
struct GroupMasks {
  int grid_h = 0, grid_w = 0;
  int images = 0;
  int context_length = 0;
  int target_length = 0;
  std::vector<std::vector<uint16_t>> contexts;  // [contexts][images * context_length]
  std::vector<std::vector<uint16_t>> targets;   // [targets][images * target_length]
  BlockSize target_size, context_size;          // {0, 0} for kinds without blocks
  int redraws = 0;          // context placements that were refused
  int dropped_targets = 0;  // reference mode: targets that were left in a context
  std::vector<int> context_lengths_untruncated;  // [images * contexts], image-major
  bool operator==(const GroupMasks&) const = default;
};

struct MultiblockSpec {
  int grid_h = 0, grid_w = 0;  // 1 .. 256
  int images = 0;
  BlockSize target, context;
  int targets = 4, contexts = 1;
  int min_keep = 10;
  bool allow_overlap = false;
  int context_multiple = 1;
};

struct Corner {
  int top = 0, left = 0;
};

// Where blocks go. next() is asked in this order: image by image, targets, then contexts, redraws included.
class CornerSource {
 public:
  virtual ~CornerSource() = default;
  virtual void begin_image(int image) = 0;
  // top in [0, rows), left in [0, columns); both >= 1.
  virtual Corner next(int rows, int columns) = 0;
};

// Random numbers of uniform mode's truncation: one stream per image.
class SubsetSource {
 public:
  virtual ~SubsetSource() = default;
  virtual void begin_image(int image) = 0;
  virtual uint32_t next_below(uint32_t range) = 0;
};

// Errors kFixConfig: a target or context block of <= min_keep patches; a block that leaves no corner (height >= grid_h or
// width >= grid_w); context_multiple above the shortest context. Ends after 20 (targets + 1) placements per context.
Result<GroupMasks> reference_masks(const MultiblockSpec& spec, CornerSource& corners);

// Errors kFixConfig: as above (blocks may fill the grid); 2,000 placements without a context of more than min_keep.
Result<GroupMasks> uniform_masks(const MultiblockSpec& spec, CornerSource& corners, SubsetSource& subsets);

}  // namespace tessera
