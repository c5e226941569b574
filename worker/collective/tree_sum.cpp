#include "worker/collective/tree_sum.h"

#include <algorithm>

namespace tessera::collective {
namespace {

void collect(const Node& node, const TileRange& range, std::vector<Node>& out) {
  if (range.begin <= node.lo && node.hi <= range.end) return out.push_back(node);
  if (node.hi <= range.begin || range.end <= node.lo || node.hi - node.lo < 2) return;
  const TileIndex middle = split_of(node);
  collect({node.lo, middle}, range, out);
  collect({middle, node.hi}, range, out);
}

// The parent of two adjacent nodes in the tree over [0, tile_count), or false when they are no siblings.
bool siblings(const Node& a, const Node& b, int tile_count) {
  Node node{0, tile_count};
  while (node.hi - node.lo >= 2) {
    const TileIndex middle = split_of(node);
    if (node.lo == a.lo && node.hi == b.hi) return middle == a.hi && middle == b.lo;
    if (b.hi <= middle) node.hi = middle;
    else if (a.lo >= middle) node.lo = middle;
    else return false;
  }
  return false;
}

}  // namespace

TileIndex split_of(const Node& node) {
  TileIndex power = 1;
  while (2 * power < node.hi - node.lo) power *= 2;
  return node.lo + power;
}

Result<TileRange> tile_range(int tile_count, int world_size, Rank rank) {
  if (tile_count < 1 || world_size < 1 || rank < 0 || rank >= world_size)
    return fail(ErrorCode::kFixConfig, "[collective] tile_range(" + std::to_string(tile_count) + " tiles, " + std::to_string(world_size) + " ranks, rank " + std::to_string(rank) + "): an argument is out of range");
  const int64_t working = std::min(tile_count, world_size);
  if (rank >= working) return TileRange{tile_count, tile_count};
  return TileRange{TileIndex(int64_t{tile_count} * rank / working), TileIndex(int64_t{tile_count} * (rank + 1) / working)};
}

std::vector<Node> maximal_nodes(int tile_count, const TileRange& range) {
  std::vector<Node> out;
  if (!range.empty()) collect({0, tile_count}, range, out);
  return out;
}

NodeStack::NodeStack(int tile_count, const TileRange& range) : tile_count_(tile_count), range_(range) {}

int NodeStack::push(TileIndex tile) {
  stack_.push_back({tile, tile + 1});
  int merges = 0;
  while (stack_.size() >= 2 && siblings(stack_[stack_.size() - 2], stack_.back(), tile_count_)) {
    const Node right = stack_.back();
    stack_.pop_back();
    stack_.back().hi = right.hi;
    ++merges;
  }
  return merges;
}

std::pair<int64_t, int64_t> slice_of(int64_t n, int world_size, Rank s) {
  const int64_t blocks = (n + 15) / 16;
  const int64_t first = blocks * s / world_size * 16, last = blocks * (s + 1) / world_size * 16;
  return {std::min(first, n), std::min(last, n)};
}

}  // namespace tessera::collective
