// The networks' operations on one CUDA device (worker/model/ops.h). The device must be the thread's current one.
#pragma once

#include <c10/core/Device.h>
#include <memory>
#include <string>

#include "worker/model/ops.h"

namespace tessera::cuda {

std::unique_ptr<model::Ops> make_cuda_ops(const model::Layout& layout, const std::string& precision, c10::Device device);

}  // namespace tessera::cuda
