// The update of one element. CPU loops and CUDA kernels compile the same lines, so that their bits agree by construction:
// every operation is one IEEE fp32 rounding, in this order, never contracted (-ffp-contract=off, nvcc -fmad=false).
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define TESSERA_BOTH __host__ __device__ __forceinline__
#else
#define TESSERA_BOTH inline
#endif

namespace tessera::optimizer::kernels {

// One AdamW step's constants, computed in double and rounded once.
struct AdamW {
  float scale;      // 1 / tiles, multiplied into the summed gradient
  float step_size;  // lr / (1 - beta1^t)
  float root_bc2;   // sqrt(1 - beta2^t)
  float decay;      // 1 - lr * weight_decay, or 1
  float eps, beta1, beta2;
  float rest1, rest2;     // 1 - beta1, 1 - beta2
};

TESSERA_BOTH void adamw_element(float g, float& p, float& m, float& v, const AdamW& a) {
  const float grad = g * a.scale;
  const float moment = a.beta1 * m + a.rest1 * grad;
  const float square = a.beta2 * v + a.rest2 * (grad * grad);
  m = moment;
  v = square;
  p = p * a.decay - a.step_size * (moment / (std::sqrt(square) / a.root_bc2 + a.eps));
}

TESSERA_BOTH float ema_element(float target, float weight, float keep, float rest) { return keep * target + rest * weight; }

}  // namespace tessera::optimizer::kernels
