// The defined sum over real sockets, threads as ranks: bit-equal for any world size.
#include "worker/collective/collective.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "worker/optimizer/update_kernels.h"

namespace tessera::collective {
namespace {

using Tiles = std::vector<std::vector<float>>;

Tiles draw(int tiles, int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> mantissa(-1, 1);
  Tiles x(static_cast<size_t>(tiles), std::vector<float>(static_cast<size_t>(n)));
  for (auto& tile : x)
    for (float& value : tile) value = std::ldexp(mantissa(random), int(random() % 30));
  return x;
}

float tree(const Tiles& x, size_t i, const Node& node) {
  if (node.hi - node.lo == 1) return x[size_t(node.lo)][i];
  return tree(x, i, {node.lo, split_of(node)}) + tree(x, i, {split_of(node), node.hi});
}

// What a trainer does: tile by tile, merging as a binary counter.
Status rank_sum(Collective& collective, const Tiles& x, const TileRange& range, std::vector<float>& result) {
  const int tiles = int(x.size());
  NodeStack stack(tiles, range);
  std::vector<std::vector<float>> buffers;
  for (TileIndex t = range.begin; t < range.end; ++t) {
    buffers.push_back(x[size_t(t)]);
    for (int merges = stack.push(t); merges > 0; --merges) {
      optimizer::kernels::accumulate(buffers[buffers.size() - 2].data(), buffers.back().data(), int64_t(result.size()));
      buffers.pop_back();
    }
  }
  std::vector<NodeBuffer> nodes;
  for (size_t i = 0; i < buffers.size(); ++i) nodes.push_back({stack.nodes()[i], buffers[i].data()});
  return collective.exchange(nodes, int64_t(result.size()), result.data());
}

// Runs body(rank, mesh) on a thread per rank of a fresh mesh.
void with_world(int world, const std::function<void(Rank, Mesh&)>& body) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  std::vector<MeshPeer> peers;
  for (Rank r = 0; r < world; ++r) {
    listeners.push_back(*MeshListener::open("127.0.0.1"));
    peers.push_back({r, "127.0.0.1:" + std::to_string(listeners.back()->port()), 1});
  }
  std::vector<std::jthread> threads;
  for (Rank r = 0; r < world; ++r)
    threads.emplace_back([&, r] {
      AbortSignal abort;
      auto mesh = Mesh::connect(*listeners[size_t(r)], "run", {1, 1}, r, peers, abort, 20000);
      ASSERT_TRUE(mesh) << mesh.error().message;
      body(r, **mesh);
    });
}

TEST(Exchange, EqualsTheSerialTreeForOneToSixteenRanks) {
  for (int world = 1; world <= 16; ++world) {
    with_world(world, [&](Rank r, Mesh& mesh) {
      for (const int tiles : {1, 2, 3, 5, 6, 7, 8, 12, 16})
        for (const int64_t n : {1, 17, 1000}) {
          const Tiles x = draw(tiles, n, unsigned(1000 * tiles + n));
          std::unique_ptr<Collective> collective = world == 1 ? make_single(tiles) : make_host(mesh, tiles, 20000);
          std::vector<float> sum(size_t(n), -1.0f);
          const auto done = rank_sum(*collective, x, *tile_range(tiles, world, r), sum);
          ASSERT_TRUE(done) << done.error().message;
          for (size_t i = 0; i < sum.size(); ++i) {
            const float expected = tree(x, i, {0, tiles});
            ASSERT_EQ(std::memcmp(&sum[i], &expected, 4), 0) << world << " ranks, rank " << r << ", " << tiles << " tiles, float " << i << " of " << n;
          }
        }
    });
  }
}

TEST(AllGather, EveryRankEndsWithEverySlice) {
  for (const int world : {2, 3, 7})
    with_world(world, [&](Rank r, Mesh& mesh) {
      auto collective = make_host(mesh, 4, 20000);
      for (const int64_t n : {5, 100, 5000}) {
        std::vector<float> data(size_t(n), -1.0f);
        const auto [first, last] = slice_of(n, world, r);
        for (int64_t i = first; i < last; ++i) data[size_t(i)] = float(i);
        ASSERT_TRUE(collective->all_gather(data.data(), n));
        for (int64_t i = 0; i < n; ++i) ASSERT_EQ(data[size_t(i)], float(i));
      }
    });
}

TEST(Broadcast, EveryRootReachesEveryRank) {
  with_world(3, [&](Rank r, Mesh& mesh) {
    auto collective = make_host(mesh, 4, 20000);
    for (Rank root = 0; root < 3; ++root) {
      std::vector<char> data(100000, char(r));
      ASSERT_TRUE(collective->broadcast(data.data(), int64_t(data.size()), root));
      for (const char c : data) ASSERT_EQ(c, char(root));
    }
  });
}

TEST(Faulty, MisbehavesWhenToldAndStaysBroken) {
  Tiles x = draw(2, 20, 1);
  std::vector<float> good(20), bad(20);
  ASSERT_TRUE(rank_sum(*make_single(2), x, {0, 2}, good));
  auto flipping = make_faulty(make_single(2), Misbehaviour::kFlipBit, 1);
  ASSERT_TRUE(rank_sum(*flipping, x, {0, 2}, bad));
  EXPECT_EQ(std::memcmp(good.data(), bad.data(), 80), 0);
  ASSERT_TRUE(rank_sum(*flipping, x, {0, 2}, bad));
  EXPECT_NE(std::memcmp(good.data(), bad.data(), 80), 0);
  auto failing = make_faulty(make_single(2), Misbehaviour::kFail, 0);
  EXPECT_FALSE(rank_sum(*failing, x, {0, 2}, bad));
  EXPECT_FALSE(rank_sum(*failing, x, {0, 2}, bad));
  EXPECT_FALSE(failing->all_gather(bad.data(), 20));
}

}  // namespace
}  // namespace tessera::collective
