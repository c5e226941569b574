// The GPU half of a program: worker/model/backend.h on CUDA, cuBLAS and NCCL.
#pragma once

#include "worker/model/backend.h"

namespace tessera::cuda {

// The process's one. Making it touches no device.
model::Backend& cuda_backend();

}  // namespace tessera::cuda
