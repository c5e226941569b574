// fixed32 where buffers lie on a device: the arithmetic of worker/collective/fixed_point.h as ATen operations, one rounding at
// the same place, so to the same bits. They run on any device; the tests compare them with the loops on a CPU. Nothing waits for
// the device but largest_of.
#pragma once

#include <ATen/core/Tensor.h>
#include <memory>
#include <vector>

#include "worker/trainer/reduction.h"

namespace tessera::trainer {

namespace fixed_tensors {
// g, sum: [n] fp32 and int32; faults: [2] int32, of tiles that were too large and tiles that were not finite.
void add_tile(const at::Tensor& g, int exponent, int32_t limit, bool first, at::Tensor sum, at::Tensor faults);
void to_floats(const at::Tensor& sum, int exponent, at::Tensor g);
// Largest magnitudes, on the host; Inf and NaN as they are.
std::vector<float> largest_of(const std::vector<at::Tensor>& parts);
}  // namespace fixed_tensors

// whole: one zeroed buffer per bucket, on the device, with the padding of the layout.
std::unique_ptr<Reduction> make_fixed_on_device(const FunctionConfig& function, const model::Layout& layout, model::FlatBuffers whole);

}  // namespace tessera::trainer
