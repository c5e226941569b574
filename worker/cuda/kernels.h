// Launchers of our CUDA kernels: plain pointers to device memory and a stream, no LibTorch. Asynchronous. Each throws
// std::runtime_error when the launch is refused (the caller's edge makes it a Result).
#pragma once

#include "worker/cuda/e4m3_bodies.h"
#include "worker/cuda/network_bodies.h"
#include "worker/cuda/update_bodies.h"

namespace tessera::cuda {

using Stream = void*;  // cudaStream_t

// One launch of a body on `blocks` blocks. Defined in kernels.cu for the bodies named there.
template <typename Kernel>
void launch(const Kernel& kernel, int64_t blocks, Stream stream);

template <typename T, typename N>
void add_norm(const AddNorm<T, N>& args, int64_t rows, Stream stream) {
  launch(args, rows, stream);
}
// Floats of scratch that norm_backward wants.
inline int64_t norm_backward_scratch(int64_t rows, int64_t d) { return up(rows, kRowsPerChunk) * 3 * d; }
// dgamma, dbeta, dsum [d]; args.partial: the scratch.
template <typename T>
void norm_backward(const NormBackward<T>& args, float* dgamma, float* dbeta, float* dsum, Stream stream) {
  const int64_t chunks = up(args.rows, kRowsPerChunk);
  launch(args, chunks, stream);
  float* const to[3] = {dgamma, dbeta, dsum};
  for (int i = 0; i < 3; ++i)
    if (to[i]) launch(RowSums{args.partial + i * args.d, chunks, 3 * args.d, args.d, to[i]}, up(args.d, 32), stream);
}
inline int64_t column_scratch(int64_t rows, int64_t d) { return up(rows, kRowsPerSum) * d; }
// Walks rows [rows, d] and sums its columns into sum [d].
template <typename Walk>
void columns(const Walk& walk, int64_t rows, int64_t d, float* scratch, float* sum, Stream stream) {
  const int64_t chunks = up(rows, kRowsPerSum);
  launch(Columns<Walk>{walk, rows, d, scratch}, chunks * up(d, kColumnsPerBlock), stream);
  launch(RowSums{scratch, chunks, d, d, sum}, up(d, 32), stream);
}
inline int64_t loss_blocks(int64_t n) { return up(n, kPerLossThread * LossPart::kThreads); }
// args.partial: loss_blocks(n) doubles; sum: one.
inline void loss(const LossPart& args, double* sum, Stream stream) {
  launch(args, loss_blocks(args.n), stream);
  launch(SumOfParts<double>{args.partial, loss_blocks(args.n), 1, sum}, 1, stream);
}
template <typename F>
void each(const F& function, int64_t n, Stream stream) {
  if (n > 0) launch(Each<F>{function, n}, up(n, Each<F>::kPerThread * Each<F>::kThreads), stream);
}

// n even.
template <typename T>
void gelu_forward(const T* before, T* after, int64_t n, Stream stream) {
  each(GeluPair<T>{before, after}, n / 2, stream);
}

constexpr int64_t kPartsOfLargest = 1024;  // words of scratch that to_e4m3 wants
// from [n], n a multiple of 4, as 8-bit floats times one scale; scale: one float of device memory.
template <typename T>
void to_e4m3(const T* from, int64_t n, uint32_t* scratch, float* scale, uint8_t* to, Stream stream) {
  const int64_t wanted = up(n, 16 * LargestPart<T>::kThreads), blocks = wanted < kPartsOfLargest ? wanted : kPartsOfLargest;
  launch(LargestPart<T>{from, n, blocks, scratch}, blocks, stream);
  launch(ScaleOfParts{scratch, blocks, scale}, 1, stream);
  each(ToE4m3<T>{from, scale, to}, n / 4, stream);
}

}  // namespace tessera::cuda
