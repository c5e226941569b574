// worker/cuda/kernels.h's launch() on this CPU: for programs that are not linked with kernels.cu.
#pragma once

#include "tests/unit/cuda/host_executor.h"
#include "worker/cuda/kernels.h"

namespace tessera::cuda {

namespace host {
inline Order order = Order::kForward;
}  // namespace host

template <typename Kernel>
void launch(const Kernel& kernel, int64_t blocks, Stream) {
  host::run(kernel, blocks, host::order);
}

}  // namespace tessera::cuda
