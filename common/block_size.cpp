#include "common/block_size.h"

#include <algorithm>
#include <cmath>

namespace tessera {
namespace {

constexpr int64_t kDraws = int64_t{1} << 24;

int round_half_even(double x) { return int(std::nearbyint(x)); }

BlockSize size_of(double scale, double aspect, int grid_h, int grid_w) {
  const int kept = int(double(grid_h * grid_w) * scale);
  return {round_half_even(std::sqrt(kept * aspect)), round_half_even(std::sqrt(kept / aspect))};
}
double at(const Pair& range, double u) { return range[0] + u * (range[1] - range[0]); }

// Least area over draws [first, last] of one uniform; height grows with the draw, so the first draw's height and the
// least possible width bound the area from below and most intervals need no look inside.
int least_area_reference(int64_t first, int64_t last, int grid_h, int grid_w, const Pair& scale, const Pair& aspect, int best) {
  const double u0 = double(first) / kDraws, u1 = double(last) / kDraws;
  const BlockSize here = reference_block_size(u0, grid_h, grid_w, scale, aspect);
  best = std::min(best, here.area());
  if (first == last) return best;
  const int kept = int(double(grid_h * grid_w) * std::min(at(scale, u0), at(scale, u1)));
  const int low_h = std::min(grid_h - 1, round_half_even(std::sqrt(kept * std::min(at(aspect, u0), at(aspect, u1)))));
  const int low_w = std::min(grid_w - 1, round_half_even(std::sqrt(kept / std::max(at(aspect, u0), at(aspect, u1)))));
  if (low_h * low_w >= best) return best;
  const int64_t middle = (first + last) / 2;
  best = least_area_reference(first, middle, grid_h, grid_w, scale, aspect, best);
  return least_area_reference(middle + 1, last, grid_h, grid_w, scale, aspect, best);
}

int least_area_uniform(int grid_h, int grid_w, const Pair& scale, const Pair& aspect) {
  // The least area has the least scale; over the aspect ratio sizes change only where a rounding does.
  int best = grid_h * grid_w;
  for (int i = 0; i <= 4096; ++i) {
    best = std::min(best, uniform_block_size(0.0, i / 4096.0, grid_h, grid_w, scale, aspect).area());
  }
  return best;
}

std::string grid_text(int h, int w) { return "grid " + std::to_string(h) + "x" + std::to_string(w); }

}  // namespace

BlockSize reference_block_size(double u, int grid_h, int grid_w, const Pair& scale, const Pair& aspect) {
  BlockSize size = size_of(at(scale, u), at(aspect, u), grid_h, grid_w);
  size.height = std::min(size.height, grid_h - 1);
  size.width = std::min(size.width, grid_w - 1);
  return size;
}

BlockSize uniform_block_size(double u_scale, double u_aspect, int grid_h, int grid_w, const Pair& scale, const Pair& aspect) {
  BlockSize size = size_of(at(scale, u_scale), at(aspect, u_aspect), grid_h, grid_w);
  size.height = std::clamp(size.height, 1, grid_h);
  size.width = std::clamp(size.width, 1, grid_w);
  return size;
}

int smallest_block_area(const MaskConfig& masks, const Pair& scale, const Pair& aspect, int grid_h, int grid_w) {
  if (masks.mode == "uniform") return least_area_uniform(grid_h, grid_w, scale, aspect);
  return least_area_reference(0, kDraws - 1, grid_h, grid_w, scale, aspect, grid_h * grid_w);
}

Status check_masks(const MaskConfig& masks, int grid_h, int grid_w) {
  if (masks.kind != "multiblock") {
    if (grid_h * grid_w < 4) return fail(ErrorCode::kFixConfig, grid_text(grid_h, grid_w) + ": too few patches to mask; lower function.model.patch_size");
    return {};
  }
  if (grid_h < 2 || grid_w < 2)
    return fail(ErrorCode::kFixConfig, grid_text(grid_h, grid_w) + ": multi-block masks need at least 2x2 patches; lower function.model.patch_size");
  const int target = smallest_block_area(masks, masks.target_scale, masks.target_aspect, grid_h, grid_w);
  if (target <= masks.min_keep)
    return fail(ErrorCode::kFixConfig, grid_text(grid_h, grid_w) + ": targets of " + std::to_string(target) + " patches never exceed min_keep " +
                                           std::to_string(masks.min_keep) + "; " +
                                           (target > 1 ? "set function.masks.min_keep <= " + std::to_string(target - 1)
                                                       : "raise function.masks.target_scale or lower function.model.patch_size"));
  const int context = smallest_block_area(masks, masks.context_scale, masks.context_aspect, grid_h, grid_w);
  if (context <= masks.min_keep)
    return fail(ErrorCode::kFixConfig, grid_text(grid_h, grid_w) + ": contexts of " + std::to_string(context) + " patches never exceed min_keep " +
                                           std::to_string(masks.min_keep) + "; raise function.masks.context_scale or lower min_keep");
  if (masks.context_multiple > context)
    return fail(ErrorCode::kFixConfig, "function.masks.context_multiple " + std::to_string(masks.context_multiple) + " is larger than the smallest context of " + std::to_string(context) + " patches");
  return {};
}

}  // namespace tessera
