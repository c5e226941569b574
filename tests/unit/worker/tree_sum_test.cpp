// Properties of the defined sum's partition, over every small world.
#include "worker/collective/tree_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <set>

namespace tessera::collective {
namespace {

constexpr int kTilesMax = 40, kWorldMax = 18;

TEST(TileRange, CoversEachTileOnceInRankOrderAndNearEvenly) {
  for (int tiles = 1; tiles <= kTilesMax; ++tiles)
    for (int world = 1; world <= kWorldMax; ++world) {
      TileIndex next = 0;
      int least = tiles, most = 0;
      for (Rank r = 0; r < world; ++r) {
        const TileRange range = *tile_range(tiles, world, r);
        EXPECT_EQ(range.empty(), r >= tiles) << tiles << " tiles, " << world << " ranks, rank " << r;
        if (range.empty()) continue;
        EXPECT_EQ(range.begin, next);
        next = range.end;
        least = std::min(least, range.size()), most = std::max(most, range.size());
      }
      EXPECT_EQ(next, tiles);
      EXPECT_LE(most - least, 1);
    }
}

TEST(TileRange, RefusesArgumentsOutOfRange) {
  for (const auto& bad : {tile_range(0, 1, 0), tile_range(4, 0, 0), tile_range(4, 2, 2), tile_range(4, 2, -1)}) {
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code, ErrorCode::kFixConfig);
  }
}

TEST(Tree, SplitsAtTheLargestPowerOfTwoBelow) {
  EXPECT_EQ(split_of({0, 2}), 1);
  EXPECT_EQ(split_of({0, 6}), 4);
  EXPECT_EQ(split_of({0, 8}), 4);
  EXPECT_EQ(split_of({4, 7}), 6);
  EXPECT_EQ(split_of({3, 8}), 7);
}

bool in_tree(const Node& wanted, const Node& node) {
  if (node == wanted) return true;
  if (node.hi - node.lo < 2) return false;
  return in_tree(wanted, {node.lo, split_of(node)}) || in_tree(wanted, {split_of(node), node.hi});
}

TEST(Tree, MaximalNodesCoverTheRangeWithFewNodesOfTheTree) {
  for (int tiles = 1; tiles <= kTilesMax; ++tiles)
    for (TileIndex begin = 0; begin < tiles; ++begin)
      for (TileIndex end = begin + 1; end <= tiles; ++end) {
        TileIndex next = begin;
        const auto nodes = maximal_nodes(tiles, {begin, end});
        for (const Node& node : nodes) {
          EXPECT_EQ(node.lo, next);
          EXPECT_TRUE(in_tree(node, {0, tiles}));
          next = node.hi;
        }
        EXPECT_EQ(next, end);
        EXPECT_LE(double(nodes.size()), 2 * std::ceil(std::log2(tiles + 1)));
      }
}

TEST(NodeStack, EndsWithTheMaximalNodesAndKeepsFewBuffers) {
  for (int tiles = 1; tiles <= kTilesMax; ++tiles)
    for (TileIndex begin = 0; begin < tiles; ++begin)
      for (TileIndex end = begin + 1; end <= tiles; ++end) {
        const TileRange range{begin, end};
        NodeStack stack(tiles, range);
        size_t most = 0, top = 0;
        for (TileIndex t = begin; t < end; ++t) {
          most = std::max(most, ++top);
          top -= size_t(stack.push(t));
        }
        EXPECT_EQ(top, stack.nodes().size());
        EXPECT_EQ(stack.nodes(), maximal_nodes(tiles, range));
        EXPECT_LE(double(most), 2 * (std::log2(tiles) + 1));
        if (begin == 0 && end == tiles) { EXPECT_LE(double(most), std::floor(std::log2(tiles)) + 2); }
      }
}

float tree(const std::vector<float>& x, const Node& node) {
  if (node.hi - node.lo == 1) return x[size_t(node.lo)];
  return tree(x, {node.lo, split_of(node)}) + tree(x, {split_of(node), node.hi});
}

// Any world gives the serial tree's bits; adding from left to right would not.
TEST(FinishTree, EqualsTheSerialTreeForAnyWorld) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> mantissa(-1, 1);
  int differs_from_plain = 0;
  for (int tiles = 1; tiles <= kTilesMax; ++tiles) {
    std::vector<float> x(static_cast<size_t>(tiles));
    for (float& value : x) value = std::ldexp(mantissa(random), int(random() % 30));
    float plain = x[0];
    for (int t = 1; t < tiles; ++t) plain += x[size_t(t)];
    const float expected = tree(x, {0, tiles});
    differs_from_plain += plain != expected;
    for (int world = 1; world <= kWorldMax; ++world) {
      std::vector<std::pair<Node, float>> have;
      for (Rank r = 0; r < world; ++r) {
        const TileRange range = *tile_range(tiles, world, r);
        NodeStack stack(tiles, range);
        std::vector<float> sums;
        for (TileIndex t = range.begin; t < range.end; ++t) {
          sums.push_back(x[size_t(t)]);
          for (int merges = stack.push(t); merges > 0; --merges) sums[sums.size() - 2] += sums.back(), sums.pop_back();
        }
        for (size_t i = 0; i < sums.size(); ++i) have.emplace_back(stack.nodes()[i], sums[i]);
      }
      EXPECT_EQ(finish_tree(Node{0, tiles}, have, [](float a, float b) { return a + b; }), expected) << tiles << " tiles, " << world << " ranks";
    }
  }
  EXPECT_GT(differs_from_plain, kTilesMax / 3) << "the values are too tame to tell one order from another";
}

TEST(Slices, CoverTheBufferOnSixtyFourByteBoundaries) {
  for (int64_t n : {0, 1, 15, 16, 17, 100, 1024, 12345})
    for (int world = 1; world <= kWorldMax; ++world) {
      int64_t next = 0;
      for (Rank s = 0; s < world; ++s) {
        const auto [first, last] = slice_of(n, world, s);
        EXPECT_EQ(first, next);
        EXPECT_TRUE(first % 16 == 0 || first == n);
        EXPECT_LE(first, last);
        next = last;
      }
      EXPECT_EQ(next, n);
    }
}

}  // namespace
}  // namespace tessera::collective
