// What a program that can compute on GPUs has beside one that cannot: worker/cuda. A program's main installs it; without
// one every device but cpu is refused. (Programs for CPUs do not load LibTorch's CUDA part, half a gigabyte.)
//
// State and gradient buffers on a device are ordinary tensors there; what cannot be said in LibTorch's words goes through
// here. Unless said otherwise a call only queues work on the device's current stream.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/config.h"
#include "common/digest.h"
#include "common/result.h"
#include "worker/model/ops.h"
#include "worker/optimizer/elements.h"

namespace tessera::collective {
class AbortSignal;
class Collective;
class Mesh;
}  // namespace tessera::collective

namespace tessera::model {

struct EmaFactors {
  float keep, rest;  // momentum and 1 - momentum, each rounded once from double
};
struct Examined {
  StateDigest digest;
  double squares = 0;  // sum of squares; NaN or Inf where an element is
};

enum class DigestOf {
  kTrained,  // weights and moments
  kTarget,
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Can this process compute on the device: driver, device, memory for `function` (null: not asked), network interface?
  // Sets what decides bits (deterministic algorithms, no TF32, cuBLAS workspaces). Before the first use of the device.
  // Errors: kFixConfig, each naming what to change.
  virtual Status prepare(const std::string& device, const FunctionConfig* function) = 0;
  // Device model, multiprocessors, library versions: equal strings promise equal bits.
  virtual std::string numerics_class(const std::string& device) = 0;
  // Operations on the device. layout must outlive them. Errors: those of prepare().
  virtual Result<std::unique_ptr<Ops>> make_ops(const Layout& layout, const std::string& precision, const std::string& device) = 0;
  // The ranks' communicator for buffers on the device; arguments and errors as collective::make_nccl.
  virtual Result<std::unique_ptr<collective::Collective>> make_collective(collective::Mesh& mesh, collective::AbortSignal& abort, int tile_count, const std::string& device, int64_t timeout_ms) = 0;

  virtual State to_device(const State& host, const std::string& precision, const std::string& device) = 0;
  virtual FlatBuffers make_buffers(const Layout& layout, const std::string& device) = 0;
  // size_bytes from device memory, on a stream of its own; waits for them. Any thread. What wrote them must be done (wait()).
  virtual void to_host(void* to, const void* from, int64_t size_bytes) = 0;
  // Most bytes that tensors ever took on the device, as LibTorch's allocator counts.
  virtual int64_t peak_memory_bytes() = 0;
  // Until everything queued on the device's current stream is done.
  virtual void wait() = 0;

  // These two wait for the device. The elements' part of State's digests (not Adam's step count); a gradient's digest and
  // sum of squares.
  virtual StateDigest digest(const State& state, DigestOf what) = 0;
  virtual Examined examine(const Layout& layout, const FlatBuffers& gradient) = 0;

  // AdamW on every bucket and, with `ema`, the target from the new weights; halves refreshed. decayed and undecayed differ
  // in their decay.
  virtual void update(State& state, const FlatBuffers& gradient, const optimizer::kernels::AdamW& decayed, const optimizer::kernels::AdamW& undecayed, std::optional<EmaFactors> ema) = 0;
  // out = keep target + rest weights over n floats of device memory.
  virtual void average(const float* target, const float* weights, EmaFactors ema, int64_t n, float* out) = 0;
  // target_half from target.
  virtual void refresh_target(State& state) = 0;
};

// Once, before anything else of worker/model. The backend lives as long as the process.
void install_backend(Backend& backend);
// Null where none is installed.
Backend* backend();

// "cuda", "cuda:3"
bool is_cuda(const std::string& device);
// kFixConfig with a sentence when the program cannot compute on that device. function as in Backend::prepare.
Status prepare_device(const std::string& device, const FunctionConfig* function);
// Operations for the device, by whichever part of the program has them. precision: as for make_cpu_ops.
Result<std::unique_ptr<Ops>> make_ops(const Layout& layout, const std::string& precision, const std::string& device);
// A host's state where the device computes; itself for the CPU.
State to_device(State host, const std::string& precision, const std::string& device);
// A copy on the host, without the halves.
State to_host(const State& state);
// Zero.
FlatBuffers make_buffers(const Layout& layout, const std::string& device);
// a += b, elementwise, one rounding each: the tree's sum on either device. Asynchronous on a GPU.
void add_into(at::Tensor& a, const at::Tensor& b);
// size_bytes of a state's buffer to host memory.
void copy_to_host(void* to, const void* from, int64_t size_bytes, bool from_device);
inline bool on_device(const FlatBuffers& role) { return !role.empty() && role[0].defined() && role[0].is_cuda(); }

}  // namespace tessera::model
