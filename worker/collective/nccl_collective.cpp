#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <atomic>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>
#include <nccl.h>
#include <optional>
#include <thread>

#include "common/clock.h"
#include "worker/collective/collective.h"

namespace tessera::collective {
namespace {

tl::unexpected<Error> rebuild(const std::string& text) { return fail(ErrorCode::kRebuildWorld, "[nccl] " + text); }

int device_index(const std::string& device) {
  const size_t colon = device.find(':');
  return colon == std::string::npos ? 0 : std::atoi(device.c_str() + colon + 1);
}

// Owns communicator and stream. Every wait polls: NCCL's own errors, the abort signal, our deadline. A failed object has
// aborted its communicator and answers every later call at once.
class Nccl : public Collective {
 public:
  Nccl(Mesh& mesh, AbortSignal& abort, int tile_count, const std::string& device, Millis timeout_ms)
      : mesh_(mesh), abort_(abort), tile_count_(tile_count), device_(device), timeout_ms_(timeout_ms) {
    for (Rank r = 0; r < mesh.world_size(); ++r) nodes_of_.push_back(maximal_nodes(tile_count, *tile_range(tile_count, mesh.world_size(), r)));
  }
  ~Nccl() override {
    if (communicator_) ncclCommAbort(communicator_);
    if (event_) cudaEventDestroy(event_);
    if (stream_) cudaStreamDestroy(stream_);
  }

  Status connect() {
    TESSERA_TRY(cuda(cudaSetDevice(device_index(device_)), "cudaSetDevice"));
    TESSERA_TRY(cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
    TESSERA_TRY(cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate"));
    ncclUniqueId id{};
    const size_t world = size_t(mesh_.world_size());
    if (mesh_.rank() == 0) TESSERA_TRY(enqueued(ncclGetUniqueId(&id), "ncclGetUniqueId"));
    std::vector<std::vector<Piece>> out(world), in(world);
    for (size_t r = 1; r < world; ++r)
      if (mesh_.rank() == 0) out[r].push_back({&id, sizeof id});
    if (mesh_.rank() != 0) in[0].push_back({&id, sizeof id});
    TESSERA_TRY(mesh_.transfer(std::move(out), std::move(in), timeout_ms_));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    TESSERA_TRY(enqueued(ncclCommInitRankConfig(&communicator_, int(world), id, mesh_.rank(), &config), "ncclCommInitRankConfig"));
    return settle("the communicator");
  }

  Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) override {
    TESSERA_TRY(usable());
    const int world = mesh_.world_size();
    const auto [first, last] = slice_of(n, world, mesh_.rank());
    const int64_t length = last - first;
    scratch_used_ = 0;
    std::vector<std::pair<Node, const float*>> have;
    TESSERA_TRY(enqueued(ncclGroupStart(), "ncclGroupStart"));
    for (Rank r = 0; r < world; ++r) {
      const auto [from, to] = slice_of(n, world, r);
      for (const auto& node : nodes) {
        if (r == mesh_.rank()) have.emplace_back(node.node, node.data + first);
        else if (to > from) TESSERA_TRY(enqueued(ncclSend(node.data + from, size_t(to - from), ncclFloat32, r, communicator_, stream_), "ncclSend"));
      }
      if (r == mesh_.rank()) continue;
      for (const Node& theirs : nodes_of_[size_t(r)]) {
        float* buffer = scratch(length);
        if (length > 0) TESSERA_TRY(enqueued(ncclRecv(buffer, size_t(length), ncclFloat32, r, communicator_, stream_), "ncclRecv"));
        have.emplace_back(theirs, buffer);
      }
    }
    TESSERA_TRY(finish_group("exchange"));
    TESSERA_TRY(sum(have, length, result + first));
    return all_gather(result, n);
  }

  Status sum_floats(float* data, int64_t n) override { return all_reduce(data, n, ncclFloat32); }
  Status sum_integers(int32_t* data, int64_t n) override { return all_reduce(data, n, ncclInt32); }

  Status all_gather(float* data, int64_t n) override {
    TESSERA_TRY(usable());
    TESSERA_TRY(enqueued(ncclGroupStart(), "ncclGroupStart"));
    for (Rank r = 0; r < mesh_.world_size(); ++r) {
      const auto [from, to] = slice_of(n, mesh_.world_size(), r);
      if (to > from) TESSERA_TRY(enqueued(ncclBroadcast(data + from, data + from, size_t(to - from), ncclFloat32, r, communicator_, stream_), "ncclBroadcast"));
    }
    return finish_group("all-gather");
  }

  Status broadcast(void* data, int64_t size_bytes, Rank root) override {
    TESSERA_TRY(usable());
    TESSERA_TRY(enqueued(ncclGroupStart(), "ncclGroupStart"));
    TESSERA_TRY(enqueued(ncclBroadcast(data, data, size_t(size_bytes), ncclUint8, root, communicator_, stream_), "ncclBroadcast"));
    return finish_group("broadcast");
  }

  void cancel() override { cancelled_ = true; }
  // An event in the stream that the calling thread computes on.
  std::shared_ptr<void> mark() override {
    cudaEvent_t event = nullptr;
    if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess) return nullptr;
    cudaEventRecord(event, c10::cuda::getCurrentCUDAStream(c10::DeviceIndex(device_index(device_))));
    return {static_cast<void*>(event), [](void* e) { cudaEventDestroy(static_cast<cudaEvent_t>(e)); }};
  }
  Status begin_after(const std::shared_ptr<void>& mark) override {
    TESSERA_TRY(usable());
    TESSERA_TRY(cuda(cudaSetDevice(device_index(device_)), "cudaSetDevice"));  // the calling thread may be another one
    if (!mark) return cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    return cuda(cudaStreamWaitEvent(stream_, static_cast<cudaEvent_t>(mark.get()), 0), "cudaStreamWaitEvent");
  }
  void quiesce() override {
    if (stream_) cudaStreamSynchronize(stream_);
  }
  Rank suspect() const override { return mesh_.suspect(); }

 private:
  Status all_reduce(void* data, int64_t n, ncclDataType_t type) {
    TESSERA_TRY(usable());
    TESSERA_TRY(enqueued(ncclGroupStart(), "ncclGroupStart"));
    TESSERA_TRY(enqueued(ncclAllReduce(data, data, size_t(n), type, ncclSum, communicator_, stream_), "ncclAllReduce"));
    return finish_group("all-reduce");
  }
  Status usable() {
    if (failed_) return tl::unexpected(*failed_);
    if (abort_.raised() || cancelled_) return give_up("aborted");
    return {};
  }
  // An aborted communicator keeps running what is queued behind it, so the stream is drained before anybody goes on.
  tl::unexpected<Error> give_up(const std::string& why) {
    if (communicator_) ncclCommAbort(communicator_);
    communicator_ = nullptr;
    quiesce();
    failed_ = rebuild(why).value();
    return tl::unexpected(*failed_);
  }
  Status cuda(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return {};
    return give_up(std::string(what) + ": " + cudaGetErrorString(code));
  }
  Status enqueued(ncclResult_t code, const char* what) {
    if (code == ncclSuccess || code == ncclInProgress) return {};
    return give_up(std::string(what) + ": " + ncclGetErrorString(code));
  }
  // Until the communicator's asynchronous state is success.
  Status settle(const std::string& what) {
    for (const Millis end = monotonic_ms() + timeout_ms_;;) {
      ncclResult_t state = ncclSuccess;
      TESSERA_TRY(enqueued(ncclCommGetAsyncError(communicator_, &state), "ncclCommGetAsyncError"));
      if (state == ncclSuccess) return {};
      TESSERA_TRY(enqueued(state, what.c_str()));
      TESSERA_TRY(not_over(what, end));
    }
  }
  Status not_over(const std::string& what, Millis end) {
    if (abort_.raised() || cancelled_) return give_up("aborted");
    if (monotonic_ms() > end) return give_up(what + " took more than " + std::to_string(timeout_ms_) + " ms");
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    return {};
  }
  Status finish_group(const std::string& what) {
    TESSERA_TRY(enqueued(ncclGroupEnd(), "ncclGroupEnd"));
    TESSERA_TRY(settle(what));
    return wait_stream(what);
  }
  Status wait_stream(const std::string& what) {
    TESSERA_TRY(cuda(cudaEventRecord(event_, stream_), "cudaEventRecord"));
    for (const Millis end = monotonic_ms() + timeout_ms_;;) {
      const cudaError_t state = cudaEventQuery(event_);
      if (state == cudaSuccess) return {};
      if (state != cudaErrorNotReady) return cuda(state, what.c_str());
      ncclResult_t async = ncclSuccess;
      TESSERA_TRY(enqueued(ncclCommGetAsyncError(communicator_, &async), "ncclCommGetAsyncError"));
      TESSERA_TRY(enqueued(async, what.c_str()));
      TESSERA_TRY(not_over(what, end));
    }
  }
  // The rest of the tree over our slice: elementwise a + b, one rounding each, in the tree's order.
  Status sum(const std::vector<std::pair<Node, const float*>>& have, int64_t length, float* out) {
    if (length == 0) return {};
    try {
      // ATen's calls go to our stream: on the thread's default one they would wait for the backward pass that is queued there.
      const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromExternal(stream_, c10::DeviceIndex(device_index(device_))));
      const float* whole = finish_tree(Node{0, tile_count_}, have, [&](const float* a, const float* b) -> const float* {
        float* to = scratch(length);
        at::Tensor sum = view(to, length);
        at::add_out(sum, view(const_cast<float*>(a), length), view(const_cast<float*>(b), length));
        return to;
      });
      TESSERA_TRY(cuda(cudaMemcpyAsync(out, whole, size_t(length) * sizeof(float), cudaMemcpyDeviceToDevice, stream_), "cudaMemcpyAsync"));
      return wait_stream("the tree's sum");
    } catch (const std::exception& e) {
      return give_up(std::string("the tree's sum: ") + e.what());
    }
  }
  at::Tensor view(float* data, int64_t n) const {
    return at::from_blob(data, {n}, at::TensorOptions().dtype(at::kFloat).device(at::kCUDA, c10::DeviceIndex(device_index(device_))));
  }
  float* scratch(int64_t n) {
    if (scratch_used_ == scratch_.size()) scratch_.emplace_back();
    at::Tensor& t = scratch_[scratch_used_++];
    const int64_t wanted = std::max<int64_t>(n, 1);
    if (!t.defined() || t.numel() < wanted) t = at::empty({wanted}, at::TensorOptions().dtype(at::kFloat).device(at::kCUDA, c10::DeviceIndex(device_index(device_))));
    return t.mutable_data_ptr<float>();
  }

  Mesh& mesh_;
  AbortSignal& abort_;
  int tile_count_;
  std::string device_;
  Millis timeout_ms_;
  std::vector<std::vector<Node>> nodes_of_;
  std::vector<at::Tensor> scratch_;
  size_t scratch_used_ = 0;
  ncclComm_t communicator_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t event_ = nullptr;
  std::optional<Error> failed_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace

Result<std::unique_ptr<Collective>> make_nccl(Mesh& mesh, AbortSignal& abort, int tile_count, const std::string& device, Millis timeout_ms) {
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess || count <= device_index(device))
    return fail(ErrorCode::kFixConfig, "[nccl] device " + device + " is not there: " + std::to_string(count) + " CUDA devices found (" + cudaGetErrorString(code) +
                                           "); set operation.device: cpu or check the driver");
  auto out = std::make_unique<Nccl>(mesh, abort, tile_count, device, timeout_ms);
  TESSERA_TRY(out->connect());
  return std::unique_ptr<Collective>(std::move(out));
}

}  // namespace tessera::collective
