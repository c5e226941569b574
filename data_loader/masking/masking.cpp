#include "data_loader/masking/masking.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "common/philox.h"

namespace tessera::data {
namespace {

constexpr int kTriesPerRegion = 20, kTriesMax = 2000;

struct Block {
  int top = 0, left = 0;
  BlockSize size;
  bool holds(int row, int column) const { return row >= top && row < top + size.height && column >= left && column < left + size.width; }
};

PatchList patches_of(const Block& block, int grid_w, const std::vector<Block>& without, size_t without_count) {
  PatchList out;
  for (int row = block.top; row < block.top + block.size.height; ++row)
    for (int column = block.left; column < block.left + block.size.width; ++column) {
      bool free = true;
      for (size_t i = 0; i < without_count && free; ++i) free = !without[i].holds(row, column);
      if (free) out.push_back(uint16_t(row * grid_w + column));
    }
  return out;
}

struct Sampler {
  const MaskConfig& masks;
  int grid_h, grid_w;
  const std::function<int(int)>& next;
  int inclusive;  // 0: the published exclusive bound; 1: every position
  int dropped = 0;

  // One block of the size with more than min_keep patches outside the first regions; gives up regions from the end.
  Result<Block> place(BlockSize size, const std::vector<Block>& regions, PatchList& out) {
    int given_up = 0;
    for (int tries = 1; tries <= kTriesMax; ++tries) {
      Block block{0, 0, size};
      block.top = next(grid_h - size.height + inclusive);
      block.left = next(grid_w - size.width + inclusive);
      out = patches_of(block, grid_w, regions, regions.size() - size_t(std::min<int>(given_up, int(regions.size()))));
      if (int64_t(out.size()) > masks.min_keep) return block;
      if (tries % kTriesPerRegion == 0) ++given_up, ++dropped;
    }
    return fail(ErrorCode::kFixConfig, "[masks] no block of " + std::to_string(size.height) + "x" + std::to_string(size.width) + " on a grid of " + std::to_string(grid_h) + "x" +
                                           std::to_string(grid_w) + " keeps more than min_keep " + std::to_string(masks.min_keep) + " patches; lower function.masks.min_keep");
  }

  Status image(BlockSize target, BlockSize context, std::vector<PatchList>& targets, std::vector<PatchList>& contexts) {
    std::vector<Block> blocks;
    for (int64_t i = 0; i < masks.targets; ++i) {
      TESSERA_ASSIGN(const Block block, place(target, {}, targets.emplace_back()));
      blocks.push_back(block);
    }
    if (masks.allow_overlap) blocks.clear();
    for (int64_t j = 0; j < masks.contexts; ++j) TESSERA_TRY(place(context, blocks, contexts.emplace_back()));
    return {};
  }
};

// [image][mask] -> [mask][image].
std::vector<std::vector<PatchList>> transpose(std::vector<std::vector<PatchList>> by_image) {
  std::vector<std::vector<PatchList>> out(by_image.empty() ? 0 : by_image[0].size());
  for (auto& image : by_image)
    for (size_t i = 0; i < image.size(); ++i) out[i].push_back(std::move(image[i]));
  return out;
}

int shortest(const std::vector<std::vector<PatchList>>& lists) {
  size_t length = SIZE_MAX;
  for (const auto& images : lists)
    for (const auto& list : images) length = std::min(length, list.size());
  return int(length);
}

void set_lengths(GroupMasks& group, int64_t context_multiple) {
  group.context_length = shortest(group.contexts);
  if (group.context_length >= context_multiple) group.context_length -= int(group.context_length % context_multiple);
  group.target_length = shortest(group.targets);
}

void keep_first(std::vector<std::vector<PatchList>>& lists, int length) {
  for (auto& images : lists)
    for (auto& list : images) list.resize(size_t(length));
}

// A uniform random subset, order kept: selection sampling (Knuth, algorithm S).
void keep_random(PatchList& list, int length, PhiloxStream& random) {
  uint32_t left = uint32_t(list.size()), wanted = uint32_t(length);
  size_t out = 0;
  for (size_t i = 0; i < list.size() && wanted > 0; ++i, --left)
    if (random.next_below(left) < wanted) list[out++] = list[i], --wanted;
  list.resize(out);
}

uint64_t image_index(const FunctionConfig& f, int64_t group, int64_t image) {
  return uint64_t(group * f.batch.tiles_per_mask_group * f.batch.tile_size + image);
}

Result<GroupMasks> multiblock(const FunctionConfig& f, Step step, int64_t mask_group) {
  const bool reference = f.masks.mode == "reference";
  const int grid = int(f.model.grid()), images = int(f.batch.tiles_per_mask_group * f.batch.tile_size);
  const uint64_t seed = uint64_t(f.seed);
  PhiloxStream sizes(seed, Purpose::kMaskSize, uint64_t(mask_group), uint32_t(step));
  BlockSize target, context;
  if (reference) {
    target = reference_block_size(double(sizes.next_float()), grid, grid, f.masks.target_scale, f.masks.target_aspect);
    context = reference_block_size(double(sizes.next_float()), grid, grid, f.masks.context_scale, f.masks.context_aspect);
  } else {
    const double u[4] = {double(sizes.next_float()), double(sizes.next_float()), double(sizes.next_float()), double(sizes.next_float())};
    target = uniform_block_size(u[0], u[1], grid, grid, f.masks.target_scale, f.masks.target_aspect);
    context = uniform_block_size(u[2], u[3], grid, grid, f.masks.context_scale, f.masks.context_aspect);
  }
  GroupMasks group;
  std::vector<std::vector<PatchList>> targets(size_t(images), std::vector<PatchList>{}), contexts(size_t(images), std::vector<PatchList>{});
  for (int i = 0; i < images; ++i) {
    PhiloxStream places(seed, Purpose::kMaskPlace, image_index(f, mask_group, i), uint32_t(step));
    const std::function<int(int)> next = [&](int range) { return reference ? int(places.next_u32() % uint32_t(range)) : int(places.next_below(uint32_t(range))); };
    Sampler sampler{f.masks, grid, grid, next, reference ? 0 : 1};
    TESSERA_TRY(sampler.image(target, context, targets[size_t(i)], contexts[size_t(i)]));
    group.dropped_regions += sampler.dropped;
  }
  group.targets = transpose(std::move(targets));
  group.contexts = transpose(std::move(contexts));
  set_lengths(group, f.masks.context_multiple);
  keep_first(group.targets, group.target_length);
  if (reference) {
    keep_first(group.contexts, group.context_length);
  } else {
    for (size_t j = 0; j < group.contexts.size(); ++j)
      for (int i = 0; i < images; ++i) {
        PhiloxStream random(seed, Purpose::kMaskTruncate, image_index(f, mask_group, i) | uint64_t(j) << 48, uint32_t(step));
        keep_random(group.contexts[j][size_t(i)], group.context_length, random);
      }
  }
  return group;
}

// The ablations of the paper's Table 6: one target and one context that together cover the grid.
Result<GroupMasks> ablation(const FunctionConfig& f, Step step, int64_t mask_group) {
  const int grid = int(f.model.grid()), patches = grid * grid, images = int(f.batch.tiles_per_mask_group * f.batch.tile_size);
  PhiloxStream sizes(uint64_t(f.seed), Purpose::kMaskSize, uint64_t(mask_group), uint32_t(step));
  const BlockSize size = uniform_block_size(0.0, double(sizes.next_float()), grid, grid, {0.6, 0.6}, f.masks.target_aspect);
  GroupMasks group;
  group.targets.resize(1), group.contexts.resize(1);
  for (int i = 0; i < images; ++i) {
    PhiloxStream random(uint64_t(f.seed), Purpose::kMaskPlace, image_index(f, mask_group, i), uint32_t(step));
    std::vector<bool> hidden(size_t(patches), false);
    if (f.masks.kind == "random") {
      PatchList all(static_cast<size_t>(patches));
      std::iota(all.begin(), all.end(), uint16_t{0});
      keep_random(all, int(0.6 * patches), random);
      for (const uint16_t p : all) hidden[p] = true;
    } else if (f.masks.kind == "block") {
      const Block block{int(random.next_below(uint32_t(grid - size.height + 1))), int(random.next_below(uint32_t(grid - size.width + 1))), size};
      for (int p = 0; p < patches; ++p) hidden[size_t(p)] = block.holds(p / grid, p % grid);
    } else {  // rasterized: a quadrant is seen
      const int half = grid / 2, quadrant = int(random.next_below(4));
      const Block seen{quadrant / 2 ? grid - half : 0, quadrant % 2 ? grid - half : 0, {half, half}};
      for (int p = 0; p < patches; ++p) hidden[size_t(p)] = !seen.holds(p / grid, p % grid);
    }
    PatchList& target = group.targets[0].emplace_back();
    PatchList& context = group.contexts[0].emplace_back();
    for (int p = 0; p < patches; ++p) (hidden[size_t(p)] ? target : context).push_back(uint16_t(p));
  }
  set_lengths(group, f.masks.context_multiple);
  if (group.context_length == 0 || group.target_length == 0)
    return fail(ErrorCode::kFixConfig, "[masks] a grid of " + std::to_string(grid) + "x" + std::to_string(grid) + " is too small for masks of kind " + f.masks.kind);
  keep_first(group.contexts, group.context_length);
  return group;
}

}  // namespace

Result<GroupMasks> reference_masks(const MaskConfig& masks, int grid_h, int grid_w, int images, BlockSize target, BlockSize context,
                                   const std::function<int(int)>& next, bool truncate) {
  Sampler sampler{masks, grid_h, grid_w, next, 0};
  std::vector<std::vector<PatchList>> targets(size_t(images), std::vector<PatchList>{}), contexts(size_t(images), std::vector<PatchList>{});
  for (int i = 0; i < images; ++i) TESSERA_TRY(sampler.image(target, context, targets[size_t(i)], contexts[size_t(i)]));
  GroupMasks group;
  group.dropped_regions = sampler.dropped;
  group.targets = transpose(std::move(targets));
  group.contexts = transpose(std::move(contexts));
  set_lengths(group, 1);
  if (truncate) {
    keep_first(group.targets, group.target_length);
    keep_first(group.contexts, group.context_length);
  }
  return group;
}

Result<GroupMasks> draw_group_masks(const FunctionConfig& function, Step step, int64_t mask_group) {
  return function.masks.kind == "multiblock" ? multiblock(function, step, mask_group) : ablation(function, step, mask_group);
}

}  // namespace tessera::data
