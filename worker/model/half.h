// bfloat16 as the CPU kernels store it.
#pragma once

#include <cstdint>

namespace tessera::model::kernels {

// The bits; LibTorch's at::BFloat16 has the same layout.
struct Half {
  uint16_t bits;
};

}  // namespace tessera::model::kernels
