#include "worker/cuda/cuda_backend.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>

#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>

#include "common/hash.h"
#include "worker/collective/collective.h"
#include "worker/cuda/cuda_ops.h"
#include "worker/cuda/device_checks.h"
#include "worker/cuda/kernels.h"
#include "worker/cuda/state_tables.h"

namespace tessera::cuda {
namespace {

using namespace tessera::model;

constexpr int64_t kStagingBytes = 32 << 20;

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string("[cuda] ") + what + ": " + cudaGetErrorString(code));
}
// The device of prepare(): threads that come here later (the exchanger's, the checkpoint writer's) have none of their own.
std::atomic<int> chosen_device{0};
void use_device() { c10::cuda::set_device(c10::DeviceIndex(chosen_device.load())); }
Stream stream() {
  use_device();
  return at::cuda::getCurrentCUDAStream().stream();
}
c10::Device device_of(const std::string& name) { return {c10::kCUDA, c10::DeviceIndex(device_index(name))}; }
const float* in(const at::Tensor& t) { return t.const_data_ptr<float>(); }
float* out(const at::Tensor& t) { return t.mutable_data_ptr<float>(); }
Half* half(const FlatBuffers& role, size_t bucket) {
  return role.empty() || !role[bucket].defined() ? nullptr : reinterpret_cast<Half*>(role[bucket].mutable_data_ptr());
}

template <typename T>
at::Tensor upload(const std::vector<T>& values, c10::Device device) {
  const at::Tensor bytes = at::from_blob(const_cast<T*>(values.data()), {int64_t(values.size() * sizeof(T))}, at::kByte);
  return bytes.to(device);
}

struct Tables {
  HostTables host;
  at::Tensor segments, chunks;
  at::Tensor parts, squares;  // results of a pass: [chunks of all buckets and roles]
  BucketTable bucket(size_t i) const {
    return {reinterpret_cast<const Segment*>(segments.const_data_ptr()) + host.first_segment[i], reinterpret_cast<const Chunk*>(chunks.const_data_ptr()) + host.first_chunk[i],
            host.first_chunk[i + 1] - host.first_chunk[i]};
  }
};

// Two pinned buffers and a stream: while one is copied on by the host, the other is filled by the device. One a thread.
class Staging {
 public:
  Staging() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    for (auto& one : pinned_) check(cudaMallocHost(&one, kStagingBytes), "cudaMallocHost");
  }
  ~Staging() {
    for (void* one : pinned_) cudaFreeHost(one);
    cudaStreamDestroy(stream_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void copy(char* to, const char* from, int64_t size_bytes) {
    int64_t begun = 0, done = 0, pending = 0;
    for (int turn = 0; done < size_bytes; turn ^= 1) {
      const int64_t next = std::min(kStagingBytes, size_bytes - begun);
      if (pending > 0) check(cudaStreamSynchronize(stream_), "copy from the device");
      if (next > 0) check(cudaMemcpyAsync(pinned_[turn], from + begun, size_t(next), cudaMemcpyDeviceToHost, stream_), "cudaMemcpyAsync");
      if (pending > 0) std::memcpy(to + done, pinned_[turn ^ 1], size_t(pending));
      done += pending, begun += next, pending = next;
    }
  }

 private:
  cudaStream_t stream_ = nullptr;
  void* pinned_[2] = {};
};

class CudaBackend : public Backend {
 public:
  Status prepare(const std::string& device, const FunctionConfig* function) override {
    std::lock_guard lock(mutex_);
    TESSERA_TRY(check_device(device, function));
    if (ready_ == device) return {};
    try {
      chosen_device = device_index(device);
      use_device();
      pin_arithmetic();
    } catch (const std::exception& e) {
      return fail(ErrorCode::kFixConfig, e.what());
    }
    ready_ = device;
    return {};
  }

  std::string numerics_class(const std::string& device) override { return device_class(device); }

  Result<std::unique_ptr<Ops>> make_ops(const Layout& layout, const std::string& precision, const std::string& device) override {
    for (const auto& place : layout.tensors)
      if (place.shape.size() == 1 && place.name.find("norm") != std::string::npos && (place.count > kMostChannels || place.count % 2 != 0))
        return fail(ErrorCode::kFixConfig, "[engine] " + place.name + " has " + std::to_string(place.count) + " channels; on a GPU they must be even and at most " + std::to_string(kMostChannels));
    return make_cuda_ops(layout, precision, device_of(device));
  }

  Result<std::unique_ptr<collective::Collective>> make_collective(collective::Mesh& mesh, collective::AbortSignal& abort, int tile_count, const std::string& device, int64_t timeout_ms) override {
    return collective::make_nccl(mesh, abort, tile_count, device, timeout_ms);
  }

  State to_device(const State& host, const std::string& precision, const std::string& device) override {
    const c10::Device to = device_of(device);
    const auto move = [&](const FlatBuffers& role) {
      FlatBuffers moved;
      for (const at::Tensor& buffer : role) moved.push_back(buffer.defined() ? buffer.to(to) : at::Tensor());
      return moved;
    };
    State s;
    s.layout = host.layout, s.step = host.step, s.adam_steps = host.adam_steps;
    s.weights = move(host.weights), s.target = move(host.target), s.exp_avg = move(host.exp_avg), s.exp_avg_sq = move(host.exp_avg_sq);
    s.context_position = host.context_position.to(to), s.target_position = host.target_position.to(to), s.predictor_position = host.predictor_position.to(to);
    s.exponents = host.exponents;  // a few numbers that the host decides with
    if (precision == "fp32") return s;
    const auto rounded = [](const FlatBuffers& role) {
      FlatBuffers halves;
      for (const at::Tensor& buffer : role) halves.push_back(buffer.defined() ? buffer.to(at::kBFloat16) : at::Tensor());
      return halves;
    };
    s.weights_half = rounded(s.weights), s.target_half = rounded(s.target);
    return s;
  }

  FlatBuffers make_buffers(const Layout& layout, const std::string& device) override {
    FlatBuffers buffers;
    for (const Bucket& bucket : layout.buckets) buffers.push_back(at::zeros({bucket.size}, at::TensorOptions().dtype(at::kFloat).device(device_of(device))));
    return buffers;
  }

  void to_host(void* to, const void* from, int64_t size_bytes) override {
    use_device();
    thread_local Staging staging;
    staging.copy(static_cast<char*>(to), static_cast<const char*>(from), size_bytes);
  }

  int64_t peak_memory_bytes() override {
    return c10::cuda::CUDACachingAllocator::getDeviceStats(c10::DeviceIndex(chosen_device.load())).allocated_bytes[0].peak;
  }

  void wait() override { check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream())), "waiting for the device"); }

  StateDigest digest(const State& s, DigestOf what) override {
    const auto tables = tables_for(s.layout, s.weights[0].device());
    int64_t used = 0;
    const auto role = [&](Role which, const FlatBuffers& buffers) {
      for (size_t i = 0; i < buffers.size(); ++i)
        if (buffers[i].defined()) used += examine_bucket(*tables, i, which, buffers[i], used, false);
    };
    if (what == DigestOf::kTarget) role(kTarget, s.target);
    else role(kWeights, s.weights), role(kExpAvg, s.exp_avg), role(kExpAvgSq, s.exp_avg_sq);
    return fold(*tables, used);
  }

  Examined examine(const Layout& layout, const FlatBuffers& gradient) override {
    const auto tables = tables_for(layout, gradient[0].device());
    int64_t used = 0;
    for (size_t i = 0; i < gradient.size(); ++i) used += examine_bucket(*tables, i, kGradient, gradient[i], used, true);
    const at::Tensor squares = at::empty({1}, tables->squares.options());
    launch(SumOfParts<double>{tables->squares.const_data_ptr<double>(), used, 1, squares.mutable_data_ptr<double>()}, 1, stream());
    return {fold(*tables, used), squares.item<double>()};
  }

  void update(State& s, const FlatBuffers& gradient, const optimizer::kernels::AdamW& decayed, const optimizer::kernels::AdamW& undecayed, std::optional<EmaFactors> ema) override {
    const auto tables = tables_for(s.layout, s.weights[0].device());
    for (size_t i = 0; i < s.weights.size(); ++i) {
      Update args{};
      args.table = tables->bucket(i), args.decayed = decayed, args.undecayed = undecayed;
      args.gradient = in(gradient[i]), args.weights = out(s.weights[i]), args.exp_avg = out(s.exp_avg[i]), args.exp_avg_sq = out(s.exp_avg_sq[i]);
      args.weights_half = half(s.weights_half, i);
      if (ema && s.target[i].defined()) args.target = out(s.target[i]), args.target_half = half(s.target_half, i), args.keep = ema->keep, args.rest = ema->rest;
      launch(args, args.table.chunk_count, stream());
    }
  }

  void average(const float* target, const float* weights, EmaFactors ema, int64_t n, float* to) override { each(Average{target, weights, ema.keep, ema.rest, to}, n, stream()); }

  void refresh_target(State& s) override {
    for (size_t i = 0; i < s.target_half.size(); ++i)
      if (s.target_half[i].defined()) each(Round{in(s.target[i]), half(s.target_half, i)}, s.target[i].numel(), stream());
  }

 private:
  // Once: what would let a library choose other bits from call to call, or round products of fp32 to TF32.
  static void pin_arithmetic() {
    auto& context = at::globalContext();
    context.setDeterministicAlgorithms(true, /*warn_only=*/false);
    context.setDeterministicFillUninitializedMemory(false);  // our kernels write everything they allocate
    context.setBenchmarkCuDNN(false);
    context.setFloat32MatmulPrecision("highest");
    context.setAllowBF16ReductionCuBLAS(/*reduced precision=*/false, /*split k=*/true);
  }

  std::shared_ptr<Tables> tables_for(const Layout& layout, c10::Device device) {
    std::string key = device.str();
    for (const auto& place : layout.tensors) key += place.name + ":" + std::to_string(place.count) + "@" + std::to_string(place.offset) + ";";
    std::lock_guard lock(mutex_);
    auto& entry = tables_[hash64_bytes(key)];
    if (entry) return entry;
    entry = std::make_shared<Tables>();
    entry->host = make_tables(layout);
    entry->segments = upload(entry->host.segments, device), entry->chunks = upload(entry->host.chunks, device);
    const int64_t chunks = int64_t(entry->host.chunks.size());
    entry->parts = at::empty({3 * chunks, 2}, at::TensorOptions().dtype(at::kLong).device(device));
    entry->squares = at::empty({chunks}, at::TensorOptions().dtype(at::kDouble).device(device));
    return entry;
  }
  static uint64_t* parts(const Tables& tables, int64_t from) { return reinterpret_cast<uint64_t*>(tables.parts.mutable_data_ptr<int64_t>()) + 2 * from; }
  static int64_t examine_bucket(const Tables& tables, size_t bucket, Role role, const at::Tensor& values, int64_t from, bool squares) {
    const BucketTable table = tables.bucket(bucket);
    launch(Examine{table, role, in(values), parts(tables, from), squares ? tables.squares.mutable_data_ptr<double>() + from : nullptr}, table.chunk_count, stream());
    return table.chunk_count;
  }
  static StateDigest fold(const Tables& tables, int64_t used) {
    const at::Tensor lanes = at::empty({2}, tables.parts.options());
    launch(SumOfParts<uint64_t>{parts(tables, 0), used, 2, reinterpret_cast<uint64_t*>(lanes.mutable_data_ptr<int64_t>())}, 2, stream());
    const at::Tensor host = lanes.cpu();
    const int64_t* values = host.const_data_ptr<int64_t>();
    return {uint64_t(values[0]), uint64_t(values[1])};
  }

  std::mutex mutex_;
  std::string ready_;
  std::map<uint64_t, std::shared_ptr<Tables>> tables_;
};

}  // namespace

Backend& cuda_backend() {
  static CudaBackend backend;
  return backend;
}

}  // namespace tessera::cuda
