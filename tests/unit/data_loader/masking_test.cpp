#include "data_loader/masking/masking.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

namespace tessera::data {
namespace {

FunctionConfig config(int grid, const std::string& mode, int images = 16) {
  FunctionConfig f;
  f.seed = 5;
  f.model.patch_size = 16, f.model.image_size = 16 * grid;
  f.masks.mode = mode;
  f.batch.tile_size = images, f.batch.tiles = 4, f.batch.tiles_per_mask_group = 1;
  return f;
}

bool ascending(const PatchList& list, int patches) {
  for (size_t i = 0; i < list.size(); ++i)
    if (list[i] >= patches || (i > 0 && list[i] <= list[i - 1])) return false;
  return true;
}

void expect_shape(const FunctionConfig& f, const GroupMasks& g) {
  const int patches = int(f.model.grid() * f.model.grid());
  const MaskCounts counts = mask_counts(f.masks);
  ASSERT_EQ(int(g.contexts.size()), counts.contexts);
  ASSERT_EQ(int(g.targets.size()), counts.targets);
  ASSERT_GT(g.context_length, 0);
  ASSERT_GT(g.target_length, 0);
  for (const auto* lists : {&g.contexts, &g.targets})
    for (const auto& images : *lists) {
      ASSERT_EQ(int64_t(images.size()), f.batch.tile_size * f.batch.tiles_per_mask_group);
      for (const PatchList& list : images) {
        ASSERT_EQ(int(list.size()), lists == &g.contexts ? g.context_length : g.target_length);
        ASSERT_TRUE(ascending(list, patches));
      }
    }
}

bool disjoint(const GroupMasks& g, size_t image) {
  std::set<uint16_t> targets;
  for (const auto& images : g.targets) targets.insert(images[image].begin(), images[image].end());
  for (const auto& images : g.contexts)
    for (const uint16_t p : images[image])
      if (targets.contains(p)) return false;
  return true;
}

TEST(Masks, ShapeAndDisjointnessOfEveryKind) {
  for (const std::string kind : {"multiblock", "random", "block", "rasterized"})
    for (const std::string mode : {"uniform", "reference"})
      for (const int grid : {7, 8, 12, 14, 16, 28, 40}) {
        FunctionConfig f = config(grid, mode);
        f.masks.kind = kind;
        f.masks.min_keep = 4;
        f.masks.contexts = 1 + grid % 2;
        for (Step step = 0; step < 30; ++step) {
          const auto g = draw_group_masks(f, step, step % 4);
          ASSERT_TRUE(g) << g.error().message;
          expect_shape(f, *g);
          if (HasFatalFailure()) return;
          if (g->dropped_regions > 0) continue;
          for (size_t i = 0; i < size_t(f.batch.tile_size); ++i) ASSERT_TRUE(disjoint(*g, i)) << kind << " " << mode << " " << grid;
        }
      }
}

TEST(Masks, UniformModeNeverDropsATarget) {
  FunctionConfig f = config(12, "uniform", 64);
  f.masks.target_scale = {0.3, 0.4};
  int redraws = 0;
  for (Step step = 0; step < 200; ++step) {
    const auto g = draw_group_masks(f, step, 0);
    ASSERT_TRUE(g) << g.error().message;
    EXPECT_EQ(g->dropped_regions, 0);
    redraws += g->redraws;
    for (size_t i = 0; i < 64; ++i) ASSERT_TRUE(disjoint(*g, i));
  }
  EXPECT_GT(redraws, 0);  // the case is hard enough to matter
}

// Frequency of each patch over many images.
std::vector<double> frequencies(const FunctionConfig& f, bool of_context, int steps) {
  std::vector<double> map(size_t(f.model.grid() * f.model.grid()), 0.0);
  for (Step step = 0; step < steps; ++step) {
    const auto g = draw_group_masks(f, step, 0);
    EXPECT_TRUE(g);
    for (const auto& images : of_context ? g->contexts : g->targets)
      for (const PatchList& list : images)
        for (const uint16_t p : list) map[p] += 1;
  }
  for (double& value : map) value /= double(steps) * double(f.batch.tile_size);
  return map;
}

TEST(Masks, UniformModeReachesEveryPatchWithoutRowBias) {
  for (const int grid : {8, 14, 16}) {
    FunctionConfig f = config(grid, "uniform", 32);
    f.masks.min_keep = 4;
    const int steps = 1500;
    const auto context = frequencies(f, true, steps), target = frequencies(f, false, steps);
    for (size_t p = 0; p < context.size(); ++p) {
      EXPECT_GT(context[p], 0.0) << "patch " << p << " is never context on " << grid;
      EXPECT_GT(target[p], 0.0) << "patch " << p << " is never target on " << grid;
    }
    // Mirror images are equally likely: rows from the top and from the bottom, rows and columns of the context.
    const auto row = [&](const std::vector<double>& map, int r, bool column) {
      double sum = 0;
      for (int i = 0; i < grid; ++i) sum += map[size_t(column ? i * grid + r : r * grid + i)];
      return sum / grid;
    };
    for (int r = 0; r < grid / 2; ++r)
      for (const bool column : {false, true}) {
        EXPECT_NEAR(row(context, r, column), row(context, grid - 1 - r, column), 0.02) << grid << " line " << r;
        EXPECT_NEAR(row(target, r, column), row(target, grid - 1 - r, column), 0.03) << grid << " line " << r;
      }
  }
}

TEST(Masks, ReferenceModeHasThePublishedDefects) {
  const FunctionConfig f = config(16, "reference", 32);
  const auto context = frequencies(f, true, 300), target = frequencies(f, false, 300);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(context[size_t(15 * 16 + i)] + target[size_t(15 * 16 + i)], 0.0);
    EXPECT_EQ(context[size_t(i * 16 + 15)] + target[size_t(i * 16 + 15)], 0.0);
  }
  double top = 0, bottom = 0;
  for (int i = 0; i < 15; ++i) top += context[size_t(i)], bottom += context[size_t(14 * 16 + i)];
  EXPECT_GT(top, 4 * bottom);
}

// Uniform subset: without truncation's help every patch of an untruncated context is kept equally often.
TEST(Masks, TruncationKeepsAUniformSubset) {
  FunctionConfig f = config(10, "uniform", 1);
  f.masks.kind = "random";
  f.masks.context_multiple = 16;  // 40 -> 32
  std::vector<double> kept(100, 0.0);
  const int steps = 20000;
  for (Step step = 0; step < steps; ++step) {
    const auto g = draw_group_masks(f, step, 0);
    ASSERT_TRUE(g);
    ASSERT_EQ(g->context_length, 32);
    ASSERT_EQ(g->target_length, 60);
    for (const uint16_t p : g->contexts[0][0]) kept[p] += 1;
  }
  for (const double k : kept) EXPECT_NEAR(k / steps, 0.32, 0.32 * 0.065);
}

// The same image alone, with others, or in a group of several tiles: the same targets, and a context that differs by its
// length alone.
TEST(Masks, ImagesDoNotDependOnTheirNeighbours) {
  FunctionConfig one = config(14, "uniform", 8), many = config(14, "uniform", 8);
  many.batch.tile_size = 4, many.batch.tiles_per_mask_group = 2;
  for (Step step = 0; step < 50; ++step) {
    const auto a = draw_group_masks(one, step, 1), b = draw_group_masks(many, step, 1);
    ASSERT_TRUE(a && b);
    EXPECT_EQ(*a, *b);
  }
  // Group 0 of 8 images and of 5: the first five images are the same images of the step.
  FunctionConfig fewer = config(14, "uniform", 5);
  for (Step step = 0; step < 200; ++step) {
    const auto a = draw_group_masks(one, step, 0), b = draw_group_masks(fewer, step, 0);
    ASSERT_TRUE(a && b);
    ASSERT_LE(a->context_length, b->context_length);
    for (size_t i = 0; i < 5; ++i) {
      for (size_t t = 0; t < 4; ++t) ASSERT_EQ(a->targets[t][i], b->targets[t][i]);
      if (a->context_length == b->context_length) { ASSERT_EQ(a->contexts[0][i], b->contexts[0][i]); }
    }
  }
}

TEST(Masks, StepsGroupsAndSeedsDiffer) {
  FunctionConfig f = config(14, "uniform");
  const auto base = draw_group_masks(f, 3, 1);
  ASSERT_TRUE(base);
  EXPECT_EQ(*base, *draw_group_masks(f, 3, 1));
  EXPECT_NE(base->targets, draw_group_masks(f, 4, 1)->targets);
  EXPECT_NE(base->targets, draw_group_masks(f, 3, 2)->targets);
  f.seed = 6;
  EXPECT_NE(base->targets, draw_group_masks(f, 3, 1)->targets);
}

TEST(Masks, ContextMultiple) {
  FunctionConfig f = config(14, "uniform", 32);
  f.masks.context_multiple = 8;
  for (Step step = 0; step < 50; ++step) {
    const auto g = draw_group_masks(f, step, 0);
    ASSERT_TRUE(g);
    EXPECT_EQ(g->context_length % 8, 0);
    expect_shape(f, *g);
  }
}

TEST(Masks, AllowOverlapLeavesTargetsInTheContext) {
  FunctionConfig f = config(14, "uniform", 8);
  f.masks.allow_overlap = true;
  bool met = false;
  for (Step step = 0; step < 20; ++step) {
    const auto g = draw_group_masks(f, step, 0);
    ASSERT_TRUE(g);
    for (size_t i = 0; i < 8; ++i) met = met || !disjoint(*g, i);
  }
  EXPECT_TRUE(met);
}

TEST(Masks, ImpossibleConfigurationsEndWithAnError) {
  FunctionConfig f = config(8, "reference");  // published ranges on 8x8: 3x3 targets never exceed min_keep 10
  int errors = 0;
  for (Step step = 0; step < 20; ++step) {
    const auto g = draw_group_masks(f, step, 0);
    if (g) continue;
    ++errors;
    EXPECT_EQ(g.error().code, ErrorCode::kFixConfig);
    EXPECT_NE(g.error().message.find("min_keep 10"), std::string::npos) << g.error().message;
  }
  EXPECT_GT(errors, 0);
  f = config(14, "uniform");
  f.masks.target_scale = {1.0, 1.0};
  f.masks.target_aspect = {1.0, 1.0};
  const auto covered = draw_group_masks(f, 0, 0);
  ASSERT_FALSE(covered);
  EXPECT_NE(covered.error().message.find("leave no context"), std::string::npos) << covered.error().message;
  f = config(300, "uniform");
  EXPECT_FALSE(draw_group_masks(f, 0, 0));
  f = config(1, "uniform");
  f.masks.kind = "rasterized";
  EXPECT_FALSE(draw_group_masks(f, 0, 0));
}

TEST(Masks, RasterizedIsOneQuadrantAgainstThree) {
  FunctionConfig f = config(14, "uniform", 64);
  f.masks.kind = "rasterized";
  const auto g = draw_group_masks(f, 0, 0);
  ASSERT_TRUE(g);
  EXPECT_EQ(g->context_length, 49);
  EXPECT_EQ(g->target_length, 49);
  std::set<uint16_t> corners;
  for (const PatchList& list : g->contexts[0]) corners.insert(list[0]);
  EXPECT_EQ(corners, (std::set<uint16_t>{0, 7, 7 * 14, 7 * 14 + 7}));
}

}  // namespace
}  // namespace tessera::data
