#include "data_loader/masking/masking.h"

#include <algorithm>
#include <numeric>

#include "common/philox.h"

namespace tessera::data {
namespace {

constexpr int kTriesPerRegion = 20;  // published
constexpr int kImageAttempts = 100;  // uniform mode
constexpr uint8_t kUncovered = 255;  // function.masks.targets <= 16

struct Block {
  int top = 0, left = 0;
  BlockSize size;
};

std::string text(const BlockSize& size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

// Places blocks of one size pair image by image; Next is int(int range), a coordinate in [0, range).
template <typename Next>
class Sampler {
 public:
  Sampler(const MaskConfig& masks, int grid_h, int grid_w, BlockSize target, BlockSize context)
      : masks_(masks), reference_(masks.mode == "reference"), grid_h_(grid_h), grid_w_(grid_w), target_(target), context_(context),
        first_cover_(size_t(grid_h * grid_w), kUncovered) {}

  // Whether every block has a corner and can keep enough patches: then image() ends.
  Status check() const {
    const int exclusive = reference_ ? 1 : 0;
    for (const BlockSize& size : {target_, context_}) {
      const std::string what = "[masks] blocks of " + text(size) + " on a grid of " + std::to_string(grid_h_) + "x" + std::to_string(grid_w_);
      if (size.height < 1 || size.width < 1 || size.height > grid_h_ - exclusive || size.width > grid_w_ - exclusive)
        return fail(ErrorCode::kFixConfig, what + " leave no corner in mode " + masks_.mode + "; change function.masks scales or aspects");
      if (size.area() <= masks_.min_keep)
        return fail(ErrorCode::kFixConfig, what + " never keep more than min_keep " + std::to_string(masks_.min_keep) + " patches; lower function.masks.min_keep");
    }
    return {};
  }

  // Appends the image's masks, untruncated, to targets[i] and contexts[j].
  Status image(Next& next, std::vector<std::vector<PatchList>>& targets, std::vector<std::vector<PatchList>>& contexts) {
    for (int attempt = 0; attempt < (reference_ ? 1 : kImageAttempts); ++attempt) {
      place_targets(next);
      found_.assign(size_t(masks_.contexts), PatchList());
      bool all = true;
      for (size_t j = 0; j < found_.size() && all; ++j) all = place_context(next, found_[j]);
      if (!all) continue;
      for (size_t i = 0; i < placed_.size(); ++i) list_block(placed_[i], 0, targets[i].emplace_back());
      for (size_t j = 0; j < found_.size(); ++j) contexts[j].push_back(std::move(found_[j]));
      return {};
    }
    return fail(ErrorCode::kFixConfig, "[masks] " + std::to_string(masks_.targets) + " targets of " + text(target_) + " leave no context of more than min_keep " +
                                           std::to_string(masks_.min_keep) + " patches; lower function.masks.target_scale, targets or min_keep");
  }

  int dropped() const { return dropped_; }
  int redraws() const { return redraws_; }

 private:
  Block corner(Next& next, BlockSize size) {
    const int inclusive = reference_ ? 0 : 1;
    const int top = next(grid_h_ - size.height + inclusive);
    return {top, next(grid_w_ - size.width + inclusive), size};
  }

  // first_cover_ of a patch: the first target that holds it, so "outside targets 0 .. n-1" is one comparison.
  void place_targets(Next& next) {
    std::fill(first_cover_.begin(), first_cover_.end(), kUncovered);
    placed_.clear();
    for (int64_t i = 0; i < masks_.targets; ++i) {
      const Block block = placed_.emplace_back(corner(next, target_));
      for (int row = block.top; row < block.top + target_.height; ++row) {
        uint8_t* cover = first_cover_.data() + row * grid_w_ + block.left;
        for (int column = 0; column < target_.width; ++column) cover[column] = std::min(cover[column], uint8_t(i));
      }
    }
  }

  // The block's patches that none of the first `regions` targets holds.
  void list_block(const Block& block, int regions, PatchList& out) const {
    out.resize(size_t(block.size.area()));
    size_t count = 0;
    for (int row = block.top; row < block.top + block.size.height; ++row)
      for (int patch = row * grid_w_ + block.left, end = patch + block.size.width; patch < end; ++patch) {
        out[count] = uint16_t(patch);
        count += first_cover_[size_t(patch)] >= regions;
      }
    out.resize(count);
  }

  bool place_context(Next& next, PatchList& out) {
    const int all_regions = masks_.allow_overlap ? 0 : int(masks_.targets);
    for (int regions = all_regions; regions >= 0; --regions) {
      for (int tries = 0; tries < kTriesPerRegion; ++tries) {
        list_block(corner(next, context_), regions, out);
        if (int64_t(out.size()) > masks_.min_keep) return true;
        ++redraws_;
      }
      if (!reference_) return false;
      ++dropped_;
    }
    return false;  // not reached in reference mode: check() holds for the whole block
  }

  const MaskConfig& masks_;
  bool reference_;
  int grid_h_, grid_w_;
  BlockSize target_, context_;
  std::vector<uint8_t> first_cover_;
  std::vector<Block> placed_;
  std::vector<PatchList> found_;
  int dropped_ = 0, redraws_ = 0;
};

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

// A uniform random subset, order kept: selection sampling (Knuth, volume 2, algorithm 3.4.2 S).
void keep_random(PatchList& list, int length, PhiloxStream& random) {
  uint32_t left = uint32_t(list.size()), wanted = uint32_t(length);
  if (left == wanted) return;
  size_t out = 0;
  for (size_t i = 0; wanted > 0; ++i, --left) {
    const uint32_t keep = random.next_below(left) < wanted;  // a coin: no branch could be foreseen
    list[out] = list[i];
    out += keep, wanted -= keep;
  }
  list.resize(out);
}

int images_of(const FunctionConfig& f) { return int(f.batch.tiles_per_mask_group * f.batch.tile_size); }
uint64_t image_index(const FunctionConfig& f, int64_t group, int64_t image) { return uint64_t(group * images_of(f) + image); }

void truncate_at_random(const FunctionConfig& f, Step step, int64_t mask_group, GroupMasks& group) {
  for (size_t j = 0; j < group.contexts.size(); ++j)
    for (size_t i = 0; i < group.contexts[j].size(); ++i) {
      const uint64_t index = image_index(f, mask_group, int64_t(i)) | uint64_t(j) << 48;
      PhiloxStream random(uint64_t(f.seed), Purpose::kMaskTruncate, index, uint32_t(step));
      keep_random(group.contexts[j][i], group.context_length, random);
    }
}

struct BlockPair {
  BlockSize target, context;
};
BlockPair draw_sizes(const FunctionConfig& f, Step step, int64_t mask_group) {
  const int grid = int(f.model.grid());
  const MaskConfig& m = f.masks;
  PhiloxStream words(uint64_t(f.seed), Purpose::kMaskSize, uint64_t(mask_group), uint32_t(step));
  double u[4];
  for (double& value : u) value = double(words.next_float());
  if (m.mode == "reference")
    return {reference_block_size(u[0], grid, grid, m.target_scale, m.target_aspect), reference_block_size(u[1], grid, grid, m.context_scale, m.context_aspect)};
  return {uniform_block_size(u[0], u[1], grid, grid, m.target_scale, m.target_aspect), uniform_block_size(u[2], u[3], grid, grid, m.context_scale, m.context_aspect)};
}

struct PhiloxCorner {
  PhiloxStream words;
  bool reference;
  int operator()(int range) { return reference ? int(words.next_u32() % uint32_t(range)) : int(words.next_below(uint32_t(range))); }
};

Result<GroupMasks> multiblock(const FunctionConfig& f, Step step, int64_t mask_group) {
  const int grid = int(f.model.grid()), images = images_of(f);
  const bool reference = f.masks.mode == "reference";
  const BlockPair sizes = draw_sizes(f, step, mask_group);
  Sampler<PhiloxCorner> sampler(f.masks, grid, grid, sizes.target, sizes.context);
  TESSERA_TRY(sampler.check());
  GroupMasks group;
  group.targets.resize(size_t(f.masks.targets)), group.contexts.resize(size_t(f.masks.contexts));
  for (auto* lists : {&group.targets, &group.contexts})
    for (auto& by_image : *lists) by_image.reserve(size_t(images));
  for (int i = 0; i < images; ++i) {
    PhiloxCorner next{{uint64_t(f.seed), Purpose::kMaskPlace, image_index(f, mask_group, i), uint32_t(step)}, reference};
    TESSERA_TRY(sampler.image(next, group.targets, group.contexts));
  }
  group.dropped_regions = sampler.dropped(), group.redraws = sampler.redraws();
  set_lengths(group, f.masks.context_multiple);
  if (reference) keep_first(group.contexts, group.context_length);
  else truncate_at_random(f, step, mask_group, group);
  return group;
}

// Splits the grid: patches with part 0 are the context's, with part i + 1 target i's, others nobody's.
void deal(const std::vector<uint8_t>& part, GroupMasks& group) {
  for (auto& images : group.targets) images.emplace_back();
  group.contexts[0].emplace_back();
  for (size_t p = 0; p < part.size(); ++p) {
    if (part[p] == 0) group.contexts[0].back().push_back(uint16_t(p));
    else if (part[p] <= group.targets.size()) group.targets[part[p] - 1u].back().push_back(uint16_t(p));
  }
}

// The part of every patch for one image of an ablation.
void draw_parts(const MaskConfig& masks, int grid, BlockSize size, PhiloxStream& random, std::vector<uint8_t>& part) {
  std::fill(part.begin(), part.end(), 0);
  if (masks.kind == "random") {
    PatchList chosen(part.size());
    std::iota(chosen.begin(), chosen.end(), uint16_t{0});
    keep_random(chosen, int(0.6 * double(part.size())), random);
    for (const uint16_t p : chosen) part[p] = 1;
  } else if (masks.kind == "block") {
    const int top = int(random.next_below(uint32_t(grid - size.height + 1))), left = int(random.next_below(uint32_t(grid - size.width + 1)));
    for (int y = 0; y < size.height; ++y) std::fill_n(part.begin() + (top + y) * grid + left, size.width, uint8_t{1});
  } else {
    const int half = grid / 2, seen = int(random.next_below(4));
    std::fill(part.begin(), part.end(), kUncovered);
    uint8_t target = 0;
    for (int quadrant = 0; quadrant < 4; ++quadrant) {
      const int top = quadrant / 2 ? grid - half : 0, left = quadrant % 2 ? grid - half : 0;
      const uint8_t value = quadrant == seen ? 0 : ++target;
      for (int y = 0; y < half; ++y) std::fill_n(part.begin() + (top + y) * grid + left, half, value);
    }
  }
}

// The ablations of the paper's Table 6.
Result<GroupMasks> ablation(const FunctionConfig& f, Step step, int64_t mask_group) {
  const int grid = int(f.model.grid()), images = images_of(f);
  PhiloxStream sizes(uint64_t(f.seed), Purpose::kMaskSize, uint64_t(mask_group), uint32_t(step));
  const BlockSize size = uniform_block_size(0.0, double(sizes.next_float()), grid, grid, {0.6, 0.6}, f.masks.target_aspect);
  const MaskCounts counts = mask_counts(f.masks);
  GroupMasks group;
  group.targets.resize(size_t(counts.targets)), group.contexts.resize(size_t(counts.contexts));
  std::vector<uint8_t> part(size_t(grid * grid), 0);
  for (int i = 0; i < images; ++i) {
    PhiloxStream random(uint64_t(f.seed), Purpose::kMaskPlace, image_index(f, mask_group, i), uint32_t(step));
    draw_parts(f.masks, grid, size, random, part);
    deal(part, group);
  }
  set_lengths(group, f.masks.context_multiple);
  if (group.context_length == 0 || group.target_length == 0)
    return fail(ErrorCode::kFixConfig, "[masks] a grid of " + std::to_string(grid) + "x" + std::to_string(grid) + " is too small for masks of kind " + f.masks.kind +
                                           "; lower function.model.patch_size");
  truncate_at_random(f, step, mask_group, group);
  return group;
}

}  // namespace

Result<GroupMasks> reference_masks(const MaskConfig& masks, int grid_h, int grid_w, int images, BlockSize target, BlockSize context,
                                   const std::function<int(int)>& next, bool truncate) {
  MaskConfig published = masks;
  published.mode = "reference";
  Sampler<const std::function<int(int)>> sampler(published, grid_h, grid_w, target, context);
  TESSERA_TRY(sampler.check());
  GroupMasks group;
  group.targets.resize(size_t(masks.targets)), group.contexts.resize(size_t(masks.contexts));
  for (int i = 0; i < images; ++i) TESSERA_TRY(sampler.image(next, group.targets, group.contexts));
  group.dropped_regions = sampler.dropped(), group.redraws = sampler.redraws();
  set_lengths(group, 1);
  if (truncate) keep_first(group.contexts, group.context_length);
  return group;
}

Result<GroupMasks> draw_group_masks(const FunctionConfig& function, Step step, int64_t mask_group) {
  const int64_t grid = function.model.grid();
  if (grid < 1 || grid > 256 || function.masks.targets > 16)
    return fail(ErrorCode::kFixConfig, "[masks] a grid of " + std::to_string(grid) + "x" + std::to_string(grid) + " with " + std::to_string(function.masks.targets) +
                                           " targets; at most 256x256 patches and 16 targets are possible: raise function.model.patch_size");
  return function.masks.kind == "multiblock" ? multiblock(function, step, mask_group) : ablation(function, step, mask_group);
}

}  // namespace tessera::data
