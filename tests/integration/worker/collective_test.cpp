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

using Buffer = std::shared_ptr<float>;

// In the arena, or of our own.
Buffer make_buffer(SharedArena* arena, const std::vector<float>& values) {
  Buffer out = arena ? std::static_pointer_cast<float>(arena->allocate(int64_t(values.size()) * 4)) : Buffer(new float[values.size()], std::default_delete<float[]>());
  std::memcpy(out.get(), values.data(), values.size() * 4);
  return out;
}

// What the vote is to a trainer: behind it everybody has left the call before, and its buffers may go.
void fence(Mesh* mesh) {
  std::vector<int64_t> words(mesh ? size_t(mesh->world_size()) : 0);
  if (mesh) (void)mesh->all_to_all(words, 0);
}

// What a trainer does: tile by tile, merging as a binary counter.
Status rank_sum(Collective& collective, const Tiles& x, const TileRange& range, std::vector<float>& result, SharedArena* arena = nullptr, Mesh* mesh = nullptr) {
  const int tiles = int(x.size());
  const int64_t n = int64_t(result.size());
  NodeStack stack(tiles, range);
  std::vector<Buffer> buffers;
  for (TileIndex t = range.begin; t < range.end; ++t) {
    buffers.push_back(make_buffer(arena, x[size_t(t)]));
    for (int merges = stack.push(t); merges > 0; --merges) {
      optimizer::kernels::accumulate(buffers[buffers.size() - 2].get(), buffers.back().get(), n);
      buffers.pop_back();
    }
  }
  std::vector<NodeBuffer> nodes;
  for (size_t i = 0; i < buffers.size(); ++i) nodes.push_back({stack.nodes()[i], buffers[i].get()});
  const Buffer sum = make_buffer(arena, result);
  Status done = collective.exchange(nodes, n, sum.get());
  fence(mesh);
  std::memcpy(result.data(), sum.get(), size_t(n) * 4);
  return done;
}

// How ranks of one host reach each other's buffers.
enum class Way { kMesh, kCopied, kInPlace };
constexpr Way kWays[] = {Way::kMesh, Way::kCopied, Way::kInPlace};
const char* name_of(Way way) { return way == Way::kMesh ? "mesh" : way == Way::kCopied ? "copied" : "in place"; }
std::unique_ptr<Collective> make_way(Way way, Mesh& mesh, int tiles, SharedArena& arena, Millis timeout_ms = 20000) {
  return make_host(mesh, tiles, timeout_ms, way == Way::kMesh ? Transport::kTcp : Transport::kAuto, way == Way::kInPlace ? &arena : nullptr);
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
  for (const Way way : kWays)
    for (int world = 1; world <= 16; ++world) {
      with_world(world, [&](Rank r, Mesh& mesh) {
        SharedArena arena;
        const std::vector<int> counts = way == Way::kMesh ? std::vector<int>{1, 2, 3, 5, 6, 7, 8, 12, 16} : std::vector<int>{1, 7, 16};
        for (const int tiles : counts) {
          std::unique_ptr<Collective> collective = world == 1 ? make_single(tiles) : make_way(way, mesh, tiles, arena);
          for (const int64_t n : {1, 17, 1000, 20000}) {
            if (n == 20000 && (tiles != 7 || world > 4)) continue;  // more than one chunk
            const Tiles x = draw(tiles, n, unsigned(1000 * tiles + n));
            std::vector<float> sum(size_t(n), -1.0f);
            const auto done = rank_sum(*collective, x, *tile_range(tiles, world, r), sum, way == Way::kInPlace ? &arena : nullptr, world > 1 ? &mesh : nullptr);
            ASSERT_TRUE(done) << done.error().message;
            for (size_t i = 0; i < sum.size(); ++i) {
              const float expected = tree(x, i, {0, tiles});
              ASSERT_EQ(std::memcmp(&sum[i], &expected, 4), 0) << name_of(way) << ", " << world << " ranks, rank " << r << ", " << tiles << " tiles, float " << i << " of " << n;
            }
          }
        }
      });
    }
}

// Of integers the sum itself; of floats the same bits on all ranks, whatever they are.
TEST(PlainSums, EveryRankHoldsTheSame) {
  for (const Way way : kWays)
    for (const int world : {2, 3, 5, 16}) {
      std::vector<std::vector<float>> held{size_t(world)};
      with_world(world, [&](Rank r, Mesh& mesh) {
        SharedArena arena;
        const auto collective = make_way(way, mesh, 4, arena);
        for (const int64_t n : {3, 1000, 20000}) {
          const Tiles x = draw(world, n, unsigned(n));
          const Buffer floats = make_buffer(way == Way::kInPlace ? &arena : nullptr, x[size_t(r)]), words = make_buffer(way == Way::kInPlace ? &arena : nullptr, x[size_t(r)]);
          ASSERT_TRUE(collective->sum_floats(floats.get(), n));
          held[size_t(r)].insert(held[size_t(r)].end(), floats.get(), floats.get() + n);
          auto* const integers = reinterpret_cast<int32_t*>(words.get());
          ASSERT_TRUE(collective->sum_integers(integers, n));
          fence(&mesh);
          for (int64_t i = 0; i < n; ++i) {
            uint32_t expected = 0;
            float near = 0;
            for (const auto& part : x) {
              uint32_t bits;
              std::memcpy(&bits, &part[size_t(i)], 4);
              expected += bits, near += std::abs(part[size_t(i)]);
            }
            ASSERT_EQ(uint32_t(integers[i]), expected) << name_of(way) << ", " << world << " ranks";
            ASSERT_LE(std::abs(floats.get()[i]), near * 1.001f);
          }
        }
      });
      for (const auto& other : held) ASSERT_EQ(std::memcmp(other.data(), held[0].data(), held[0].size() * 4), 0) << name_of(way) << ", " << world << " ranks";
    }
}

TEST(AllGather, EveryRankEndsWithEverySlice) {
  for (const Way way : kWays)
    for (const int world : {2, 3, 7})
      with_world(world, [&](Rank r, Mesh& mesh) {
        SharedArena arena;
        auto collective = make_way(way, mesh, 4, arena);
        for (const int64_t n : {5, 100, 5000, 4999}) {
          const Buffer data = make_buffer(way == Way::kInPlace ? &arena : nullptr, std::vector<float>(size_t(n), -1.0f));
          const auto [first, last] = slice_of(n, world, r);
          for (int64_t i = first; i < last; ++i) data.get()[i] = float(i + n);
          ASSERT_TRUE(collective->all_gather(data.get(), n));
          fence(&mesh);
          for (int64_t i = 0; i < n; ++i) ASSERT_EQ(data.get()[i], float(i + n)) << name_of(way);
        }
      });
}

// Memory does not say that its owner is gone; the mesh does, at once and by name.
TEST(Exchange, APeerThatIsGoneIsNoticedWhateverTheWay) {
  for (const Way way : kWays) {
    const Tiles x = draw(3, 1000, 1);
    with_world(3, [&](Rank r, Mesh& mesh) {
      SharedArena arena;
      const auto collective = make_way(way, mesh, 3, arena, 0);
      std::vector<float> sum(1000);
      ASSERT_TRUE(rank_sum(*collective, x, *tile_range(3, 3, r), sum, &arena, &mesh));
      if (r == 2) return;  // its mesh closes
      const auto done = rank_sum(*collective, x, *tile_range(3, 3, r), sum, &arena);
      ASSERT_FALSE(done) << name_of(way);
      EXPECT_EQ(done.error().code, ErrorCode::kRebuildWorld);
      if (collective->suspect() != 2) { EXPECT_EQ(collective->suspect(), 1 - r) << "only the one that noticed first may be named instead"; }
      EXPECT_FALSE(collective->all_gather(sum.data(), 1000)) << "and every later call answers at once";
    });
  }
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
