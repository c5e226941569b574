// NCCL when a peer does not come, and two ranks that share a GPU.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <thread>

#include "worker/collective/collective.h"

namespace tessera::collective {
namespace {

struct Pair {
  std::unique_ptr<MeshListener> listeners[2];
  std::unique_ptr<Mesh> meshes[2];
  AbortSignal aborts[2];

  Pair() {
    std::vector<MeshPeer> peers;
    for (Rank r = 0; r < 2; ++r) {
      listeners[r] = *MeshListener::open("127.0.0.1");
      peers.push_back({r, "127.0.0.1:" + std::to_string(listeners[r]->port()), 1});
    }
    std::jthread other([&] { meshes[1] = *Mesh::connect(*listeners[1], "run", {1, 1}, 1, peers, aborts[1], 10000); });
    meshes[0] = *Mesh::connect(*listeners[0], "run", {1, 1}, 0, peers, aborts[0], 10000);
  }
};

bool no_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) != cudaSuccess || count == 0;
}

// The peer holds its mesh and never enters NCCL: the communicator cannot form, and only the abort ends the wait.
TEST(NcclStuck, AnAbortEndsTheWaitForAPeer) {
  if (no_gpu()) GTEST_SKIP() << "no CUDA device here (cudaGetDeviceCount)";
  Pair pair;
  Result<std::unique_ptr<Collective>> made = fail(ErrorCode::kInternal, "not tried");
  std::jthread rank([&] {
    cudaSetDevice(0);
    made = make_nccl(*pair.meshes[0], pair.aborts[0], 2, "cuda:0", 600000);
  });
  std::this_thread::sleep_for(std::chrono::seconds(1));  // well within ncclCommInitRank
  pair.aborts[0].raise();
  rank.join();
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::kRebuildWorld);
  // The device is usable afterwards.
  float* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 1024), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  cudaFree(memory);
}

// NCCL refuses two ranks of one process on one device; where a version allows it, they must sum.
TEST(NcclStuck, TwoRanksOnOneGpuWhereNcclAllowsIt) {
  if (no_gpu()) GTEST_SKIP() << "no CUDA device here (cudaGetDeviceCount)";
  Pair pair;
  std::string reasons[2];
  float got[2] = {};
  {
    std::vector<std::jthread> ranks;
    for (Rank r = 0; r < 2; ++r)
      ranks.emplace_back([&, r] {
        cudaSetDevice(0);
        auto nccl = make_nccl(*pair.meshes[r], pair.aborts[r], 2, "cuda:0", 20000);
        if (!nccl) {
          reasons[r] = nccl.error().message;
          pair.aborts[1 - r].raise();
          return;
        }
        float* data = nullptr;
        const float mine = float(r + 1);
        cudaMalloc(&data, 2 * sizeof(float));
        cudaMemcpy(data, &mine, sizeof mine, cudaMemcpyHostToDevice);
        if (const Status done = (*nccl)->exchange({{{r, r + 1}, data}}, 1, data + 1); !done) reasons[r] = done.error().message;
        (*nccl)->quiesce();
        cudaMemcpy(&got[r], data + 1, sizeof(float), cudaMemcpyDeviceToHost);
        cudaFree(data);
      });
  }
  if (!reasons[0].empty() || !reasons[1].empty()) GTEST_SKIP() << "NCCL does not let two ranks share a GPU: " << reasons[0] << " / " << reasons[1];
  EXPECT_EQ(got[0], 3.0f);
  EXPECT_EQ(got[1], 3.0f);
}

}  // namespace
}  // namespace tessera::collective
