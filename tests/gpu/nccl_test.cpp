// NCCL's collective against the serial tree: one thread a GPU, as many ranks as there are GPUs.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>

#include "worker/collective/collective.h"

namespace tessera::collective {
namespace {

constexpr int kTiles = 6;
constexpr int64_t kFloats = 10007;

int gpu_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

float tree(const std::vector<std::vector<float>>& x, size_t i, const Node& node) {
  if (node.hi - node.lo == 1) return x[size_t(node.lo)][i];
  return tree(x, i, {node.lo, split_of(node)}) + tree(x, i, {split_of(node), node.hi});
}

struct DeviceBuffer {
  explicit DeviceBuffer(const std::vector<float>& values) {
    cudaMalloc(&data, values.size() * sizeof(float));
    cudaMemcpy(data, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice);
  }
  ~DeviceBuffer() { cudaFree(data); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  float* data = nullptr;
};

std::vector<std::vector<float>> tile_values() {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> mantissa(-1, 1);
  std::vector<std::vector<float>> x(kTiles, std::vector<float>(kFloats));
  for (auto& tile : x)
    for (float& value : tile) value = std::ldexp(mantissa(random), int(random() % 30));
  return x;
}

TEST(Nccl, ExchangeIsTheTreesSumOnEveryRank) {
  const int world = std::min(gpu_count(), 8);
  if (world == 0) GTEST_SKIP() << "no CUDA device here (cudaGetDeviceCount)";
  const auto x = tile_values();
  std::vector<std::unique_ptr<MeshListener>> listeners;
  std::vector<MeshPeer> peers;
  for (Rank r = 0; r < world; ++r) {
    listeners.push_back(*MeshListener::open("127.0.0.1"));
    peers.push_back({r, "127.0.0.1:" + std::to_string(listeners.back()->port()), 1});
  }
  const auto rank_count = static_cast<size_t>(world);
  std::vector<std::vector<float>> results(rank_count, std::vector<float>(kFloats));
  std::vector<std::string> errors{size_t(world)};
  const auto run = [&](Rank r) -> Status {
    AbortSignal abort;
    cudaSetDevice(r);
    TESSERA_ASSIGN(auto mesh, Mesh::connect(*listeners[size_t(r)], "run", {1, 1}, r, peers, abort, 10000));
    TESSERA_ASSIGN(auto nccl, make_nccl(*mesh, abort, kTiles, "cuda:" + std::to_string(r), 60000));
    const TileRange range = *tile_range(kTiles, world, r);
    std::vector<std::unique_ptr<DeviceBuffer>> buffers;
    std::vector<NodeBuffer> nodes;
    for (const Node& node : maximal_nodes(kTiles, range)) {
      std::vector<float> sum(kFloats);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] = tree(x, i, node);
      buffers.push_back(std::make_unique<DeviceBuffer>(sum));
      nodes.push_back({node, buffers.back()->data});
    }
    DeviceBuffer result(std::vector<float>(kFloats, 0.0f));
    TESSERA_TRY(nccl->exchange(nodes, kFloats, result.data));
    // One element that every rank adds its number to, as integers and as floats.
    DeviceBuffer ones(std::vector<float>(100, float(r + 1)));
    std::vector<float> sums(100);
    TESSERA_TRY(nccl->begin_after(nccl->mark()));
    TESSERA_TRY(nccl->sum_floats(ones.data, 100));
    nccl->quiesce();
    cudaMemcpy(sums.data(), ones.data, 400, cudaMemcpyDeviceToHost);
    if (sums[99] != float(world * (world + 1)) / 2) return fail(ErrorCode::kInternal, "the sum of floats is wrong");
    std::vector<int32_t> words(100, r + 1);
    cudaMemcpy(ones.data, words.data(), 400, cudaMemcpyHostToDevice);
    TESSERA_TRY(nccl->sum_integers(reinterpret_cast<int32_t*>(ones.data), 100));
    nccl->quiesce();
    cudaMemcpy(words.data(), ones.data, 400, cudaMemcpyDeviceToHost);
    if (words[99] != world * (world + 1) / 2) return fail(ErrorCode::kInternal, "the sum of integers is wrong");
    cudaMemcpy(results[size_t(r)].data(), result.data, kFloats * sizeof(float), cudaMemcpyDeviceToHost);
    abort.raise();
    if (nccl->all_gather(result.data, kFloats)) return fail(ErrorCode::kInternal, "a call after an abort must fail");
    return {};
  };
  {
    std::vector<std::jthread> threads;
    for (Rank r = 0; r < world; ++r)
      threads.emplace_back([&, r] {
        if (const Status done = run(r); !done) errors[size_t(r)] = done.error().message;
      });
  }
  for (Rank r = 0; r < world; ++r) {
    EXPECT_EQ(errors[size_t(r)], "");
    for (size_t i = 0; i < results[size_t(r)].size(); ++i) ASSERT_EQ(results[size_t(r)][i], tree(x, i, {0, kTiles})) << "rank " << r << " of " << world << ", float " << i;
  }
}

TEST(Nccl, ADeviceThatIsNotThereIsNamed) {
  auto listener = *MeshListener::open("127.0.0.1");
  AbortSignal abort;
  auto mesh = *Mesh::connect(*listener, "run", {1, 1}, 0, {{0, "127.0.0.1:" + std::to_string(listener->port()), 1}}, abort, 1000);
  const auto made = make_nccl(*mesh, abort, 2, "cuda:97", 1000);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::kFixConfig);
  EXPECT_NE(made.error().message.find("cuda:97"), std::string::npos);
}

}  // namespace
}  // namespace tessera::collective
