// Sizes of multi-block mask blocks, and whether a mask configuration can be satisfied. Pure.
// Source: published sampler src/masks/multiblock.py `_sample_block_size`; I-JEPA paper section 3 ("Targets", "Context").
#pragma once

#include "common/config.h"

namespace tessera {

struct BlockSize {
  int height = 0;  // patches
  int width = 0;
  int area() const { return height * width; }
  bool operator==(const BlockSize&) const = default;
};

// Published rule: one uniform u in [0, 1) gives scale and aspect ratio both; h = round(sqrt(K a)), w = round(sqrt(K / a))
// with K = int(H W s), halves to even; then cut to at most H-1, W-1. Arithmetic in double, as Python's.
BlockSize reference_block_size(double u, int grid_h, int grid_w, const Pair& scale, const Pair& aspect);

// Uniform mode: scale and aspect ratio from two independent uniforms; cut to at most H, W.
BlockSize uniform_block_size(double u_scale, double u_aspect, int grid_h, int grid_w, const Pair& scale, const Pair& aspect);

// Smallest target area over every possible draw (u = k / 2^24 in both modes).
int smallest_block_area(const MaskConfig& masks, const Pair& scale, const Pair& aspect, int grid_h, int grid_w);

// Masks per image: the number of lists in a tile's header. Only kind multiblock takes them from the config; random and
// block have one target, rasterized has the three quadrants that are not its context.
struct MaskCounts {
  int contexts = 0;
  int targets = 0;
};
inline MaskCounts mask_counts(const MaskConfig& masks) {
  if (masks.kind == "multiblock") return {int(masks.contexts), int(masks.targets)};
  return {1, masks.kind == "rasterized" ? 3 : 1};
}

// Error kFixConfig: some draw gives a target of at most min_keep patches ("grid 8x8: targets of 9 patches never exceed
// min_keep 10; set function.masks.min_keep <= 8"), or the context can never exceed it.
Status check_masks(const MaskConfig& masks, int grid_h, int grid_w);

}  // namespace tessera
