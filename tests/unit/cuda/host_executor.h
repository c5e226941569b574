// Walks through a kernel body (worker/cuda/kernel_form.h) as a GPU would: blocks in any order, and within a phase threads
// in any order. A body whose result depends on either misses a barrier.
#pragma once

#include <memory>
#include <vector>

#include "worker/cuda/kernel_form.h"

namespace tessera::cuda {

enum class Order { kForward, kBackward };

namespace host {

template <int p, typename Kernel>
void phases(const Kernel& kernel, Place at, typename Kernel::Shared& shared, std::vector<typename Kernel::Local>& locals, Order order) {
  if constexpr (p < Kernel::kPhases) {
    for (int i = 0; i < Kernel::kThreads; ++i) {
      at.thread = order == Order::kForward ? i : Kernel::kThreads - 1 - i;
      kernel.template phase<p>(at, shared, locals[size_t(at.thread)]);
    }
    phases<p + 1>(kernel, at, shared, locals, order);
  }
}

template <typename Kernel>
void block(const Kernel& kernel, int64_t index, Order order) {
  auto shared = std::make_unique<typename Kernel::Shared>();
  std::vector<typename Kernel::Local> locals(static_cast<size_t>(Kernel::kThreads));
  Place at{index, 0, 0};
  for (at.round = 0; at.round < kernel.rounds(index); ++at.round) phases<0>(kernel, at, *shared, locals, order);
  for (at.thread = 0; at.thread < Kernel::kThreads; ++at.thread) kernel.finish(at, *shared, locals[size_t(at.thread)]);
}

// What kernels.cu does on a device.
template <typename Kernel>
void run(const Kernel& kernel, int64_t blocks, Order order = Order::kForward) {
  for (int64_t i = 0; i < blocks; ++i) block(kernel, order == Order::kForward ? i : blocks - 1 - i, order);
}

}  // namespace host
}  // namespace tessera::cuda
