// The only file that nvcc compiles. -fmad=false: see kernel_form.h.
#include "worker/cuda/kernels.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace tessera::cuda {
namespace {

template <int p, typename Kernel>
__device__ __forceinline__ void phases(const Kernel& kernel, const Place& at, typename Kernel::Shared& shared, typename Kernel::Local& local) {
  if constexpr (p < Kernel::kPhases) {
    kernel.template phase<p>(at, shared, local);
    if constexpr (Kernel::kPhases > 1) __syncthreads();
    phases<p + 1>(kernel, at, shared, local);
  }
}

// Shared and Local may have initialisers: shared memory is taken raw (every body writes before it reads).
template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) run(const __grid_constant__ Kernel kernel) {
  __shared__ __align__(16) unsigned char memory[sizeof(typename Kernel::Shared)];
  auto& shared = *reinterpret_cast<typename Kernel::Shared*>(memory);
  typename Kernel::Local local;
  Place at{int64_t(blockIdx.x), int(threadIdx.x), 0};
  const int64_t rounds = kernel.rounds(at.block);
  for (int64_t i = 0; i != rounds; ++i) {
    at.round = i;
    phases<0>(kernel, at, shared, local);
  }
  kernel.finish(at, shared, local);
}

}  // namespace

template <typename Kernel>
void launch(const Kernel& kernel, int64_t blocks, Stream stream) {
  if (blocks == 0) return;
  run<Kernel><<<dim3(unsigned(blocks)), Kernel::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(kernel);
  if (const cudaError_t code = cudaGetLastError(); code != cudaSuccess)
    throw std::runtime_error(std::string("[cuda] a kernel of ") + std::to_string(blocks) + " blocks cannot start: " + cudaGetErrorString(code));
}

#define TESSERA_LAUNCHES(...) template void launch<__VA_ARGS__>(const __VA_ARGS__&, int64_t, Stream)
using AddHalf = AddNorm<Half, Half>;
using AddHalfStream = AddNorm<Half, float>;
using AddFloat = AddNorm<float, float>;
TESSERA_LAUNCHES(AddHalf);
TESSERA_LAUNCHES(AddHalfStream);
TESSERA_LAUNCHES(AddFloat);
TESSERA_LAUNCHES(NormBackward<Half>);
TESSERA_LAUNCHES(NormBackward<float>);
TESSERA_LAUNCHES(RowSums);
TESSERA_LAUNCHES(Columns<ReadPair<Half>>);
TESSERA_LAUNCHES(Columns<ReadPair<float>>);
TESSERA_LAUNCHES(Columns<GeluBackwardPair<Half>>);
TESSERA_LAUNCHES(Columns<GeluBackwardPair<float>>);
TESSERA_LAUNCHES(Columns<PackPair<Half>>);
TESSERA_LAUNCHES(Columns<PackPair<float>>);
TESSERA_LAUNCHES(Each<GeluPair<Half>>);
TESSERA_LAUNCHES(Each<GeluPair<float>>);
TESSERA_LAUNCHES(LossPart);
TESSERA_LAUNCHES(SumOfParts<double>);
TESSERA_LAUNCHES(SumOfParts<uint64_t>);
TESSERA_LAUNCHES(Patchify<Half>);
TESSERA_LAUNCHES(Patchify<float>);
TESSERA_LAUNCHES(LargestPart<Half>);
TESSERA_LAUNCHES(LargestPart<float>);
TESSERA_LAUNCHES(ScaleOfParts);
TESSERA_LAUNCHES(Each<ToE4m3<Half>>);
TESSERA_LAUNCHES(Each<ToE4m3<float>>);
TESSERA_LAUNCHES(Update);
TESSERA_LAUNCHES(Examine);
TESSERA_LAUNCHES(Each<Average>);
TESSERA_LAUNCHES(Each<Round>);

}  // namespace tessera::cuda
