// The update's arithmetic over float arrays: no LibTorch, no contraction, so neither ISA nor slicing changes a bit.
#pragma once

#include <cstdint>

#include "worker/optimizer/elements.h"

namespace tessera::optimizer::kernels {

// p, m, v [n] in place from the summed gradient g [n].
void adamw(const float* g, float* p, float* m, float* v, int64_t n, const AdamW& a);
// out = momentum * target + (1 - momentum) * weights, both factors rounded once from double as the published code does.
void ema(const float* target, const float* weights, double momentum, int64_t n, float* out);
// The same onto the target itself.
void ema_in_place(float* target, const float* weights, double momentum, int64_t n);
// Sum of squares in double over fixed chunks; NaN or Inf where an element is.
double sum_of_squares(const float* x, int64_t n);
// out must be neither a nor b.
void add(const float* a, const float* b, float* out, int64_t n);
// a += b.
void accumulate(float* a, const float* b, int64_t n);

}  // namespace tessera::optimizer::kernels
