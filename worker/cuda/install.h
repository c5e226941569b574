// Which devices a program can compute on is decided when it is linked: install_cuda.cpp or no_cuda.cpp.
#pragma once

namespace tessera::cuda {

// First thing in main, before LibTorch is used. Touches no device.
void install_devices();
// "cuda" or "cpu".
const char* linked_devices();

}  // namespace tessera::cuda
