// CPU kernels of the hand-written passes: plain loops over float arrays, no LibTorch. Sums run over fixed chunks and
// fixed lanes, so their bits depend on the arguments alone: not on threads, not on the vector width the compiler used.
#pragma once

#include <cstdint>

namespace tessera::model::kernels {

// Rows per partial sum of the affine gradients. Part of the function: a change raises function.version.
inline constexpr int64_t kRowsPerChunk = 64;

// LayerNorm backward over the last dimension: y = (x - mean) rstd gamma + beta. Written plainly: what the fused ones of
// row_kernels.h and worker/cuda are held against.
//   x, dy [rows, d]; mean, rstd [rows]; gamma [d]; residual [rows, d] or null: added to dx (the skip connection).
//   out: dx [rows, d] (may be residual itself), dgamma [d], dbeta [d].
//   scratch: 2 d * chunk_count(rows) floats.
struct LayerNormBackward {
  const float* x;
  const float* dy;
  const float* mean;
  const float* rstd;
  const float* gamma;
  const float* residual;
  int64_t rows;
  int64_t d;
  float* dx;
  float* dgamma;
  float* dbeta;
  float* scratch;
};
inline int64_t chunk_count(int64_t rows) { return (rows + kRowsPerChunk - 1) / kRowsPerChunk; }
// Rows of chunks [first, last) : dx and the chunks' partial sums in scratch. Chunks are independent: any thread.
void layer_norm_backward_chunks(const LayerNormBackward& args, int64_t first, int64_t last);
// Adds the partial sums in chunk order into dgamma, dbeta.
void layer_norm_backward_finish(const LayerNormBackward& args);

enum class Loss {
  kSmoothL1,  // beta 1: d^2 / 2 below 1, |d| - 1/2 above; what was published
  kL1,        // |d|
  kL2,        // d^2
};
// The loss of d = prediction - target summed over n elements, in double over fixed chunks of 256; writes the gradient of
// the mean: dloss/dd / n.
double loss(Loss kind, const float* prediction, const float* target, int64_t n, float* gradient);

// u8 NHWC pixels to patch rows [patch_count, 3 p p] in the order (channel, y, x) of the published convolution, with
// (u8 / 255 - mean) / std in fp32 in that order of operations. Patches of one image, all of them, row-major.
void patchify(const uint8_t* image, int64_t image_size, int64_t patch_size, const float mean[3], const float std[3], float* out);

}  // namespace tessera::model::kernels
