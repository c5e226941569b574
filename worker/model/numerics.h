// Which library code paths compute, decided once per process and before the first product: they decide bits.
#pragma once

#include <string>

namespace tessera::model {

// Clears variables that would choose code paths behind our back and pins those that must be the same everywhere.
// Before the first call into LibTorch.
void pin_library_environment();

// fp32 products by oneDNN's AVX-512 kernels where they are true fp32 (about 2.3 times MKL's speed on AVX-512 machines
// without AMX), else by MKL. "True" is tried out: a product of this process must agree with fp64 within 1e-6 relative to
// its largest element; where oneDNN answers in bf16 (AMX), the error is a thousand times that. Returns the name for the
// numerics class: "onednn-fp32" or "mkl-fp32". Later calls return the first one's choice.
const std::string& choose_matmul();

// Equal strings promise equal bits (DESIGN section 1). device: "cpu" or "cuda:N".
std::string numerics_class(const std::string& device, int threads);

}  // namespace tessera::model
