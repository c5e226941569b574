#include "worker/cuda/install.h"

namespace tessera::cuda {

void install_devices() {}
const char* linked_devices() { return "cpu"; }

}  // namespace tessera::cuda
