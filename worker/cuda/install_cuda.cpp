#include "worker/cuda/cuda_backend.h"
#include "worker/cuda/install.h"

namespace tessera::cuda {

void install_devices() { model::install_backend(cuda_backend()); }
const char* linked_devices() { return "cuda"; }

}  // namespace tessera::cuda
