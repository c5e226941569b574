// The one defined sum over tiles (DESIGN section 7). Node [lo, hi) of the tree splits at lo + the largest power of two
// below hi - lo; sums are fp32 in this order only. A rank owns a contiguous range of tiles and holds the sums of the
// range's maximal nodes; the exchange finishes the tree. Pure.
#pragma once

#include <utility>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace tessera::collective {

struct Node {
  TileIndex lo = 0, hi = 0;  // half-open
  auto operator<=>(const Node&) const = default;
};

// First tile of the right child, for hi - lo >= 2.
TileIndex split_of(const Node& node);

// Tiles that a rank evaluates: contiguous, in rank order, sizes differ by at most one; together they cover
// [0, tile_count) exactly. Empty for a spare (rank >= tile_count). Error: kFixConfig, an argument out of range.
Result<TileRange> tile_range(int tile_count, int world_size, Rank rank);

// The maximal nodes of the tree over [0, tile_count) that lie inside the range, in tile order: at most 2 log2(tiles).
std::vector<Node> maximal_nodes(int tile_count, const TileRange& range);

// What a rank does with its tiles' gradients, as a list: evaluating tiles in order, after each one pop-and-add while the
// two newest nodes are siblings inside one maximal node. Keeps at most log2(tiles) + 1 buffers per maximal node alive.
class NodeStack {
 public:
  NodeStack(int tile_count, const TileRange& range);
  // Tile's gradient was put on top of the stack. Returns how many times the two topmost buffers must now be added
  // (second from top += top, top freed).
  int push(TileIndex tile);
  const std::vector<Node>& nodes() const { return stack_; }  // after the last tile: the maximal nodes

 private:
  int tile_count_;
  TileRange range_;
  std::vector<Node> stack_;
};

// Combines nodes into the root [0, tile_count) by the tree's order: calls add(a, b) for children sums (a left, b right),
// which returns the handle of the sum. have: (node, handle) pairs that cover the root.
template <typename Handle, typename Add>
Handle finish_tree(const Node& root, const std::vector<std::pair<Node, Handle>>& have, const Add& add) {
  for (const auto& [node, handle] : have)
    if (node == root) return handle;
  TESSERA_CHECK(root.hi - root.lo >= 2, "the nodes do not cover the tree");
  const TileIndex middle = split_of(root);
  Handle left = finish_tree(Node{root.lo, middle}, have, add);
  Handle right = finish_tree(Node{middle, root.hi}, have, add);
  return add(left, right);
}

// Floats of slice s of a buffer of n floats among world_size ranks: [first, last), multiples of 16 but for the end.
std::pair<int64_t, int64_t> slice_of(int64_t n, int world_size, Rank s);

}  // namespace tessera::collective
