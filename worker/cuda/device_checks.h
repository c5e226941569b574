// What can be wrong with a GPU before the first step, each a sentence that says what to change. The judgements are pure
// and tested without a GPU; check_device() asks the machine and calls them.
#pragma once

#include <string>
#include <vector>

#include "common/config.h"
#include "common/result.h"

namespace tessera::cuda {

// "cuda:3": 3; "cuda": 0.
int device_index(const std::string& device);

struct DriverFacts {
  int driver_version = 0;   // 13000: the newest CUDA that the driver supports; 0: no driver
  int runtime_version = 0;  // 13000: that this build runs on
  int device_count = 0;
  std::string error;  // of cudaGetDeviceCount; empty when it succeeded
};
// No driver, one too old, no device, not that many.
Status judge_driver(const std::string& device, const DriverFacts& facts);
// This build has code for compute capability 8.0 and 9.0 and what runs it.
Status judge_capability(const std::string& device, const std::string& name, int major, int minor);
// NCCL_SOCKET_IFNAME's own syntax: prefixes, comma separated; '=' exact; '^' none of these. setting empty: NCCL chooses.
Status judge_interface(const std::string& setting, const std::vector<std::string>& interfaces);

// The fused bf16 attention takes heads of a multiple of eight channels.
Status judge_heads(const FunctionConfig& function);

// Products of 8-bit floats want compute capability 8.9 and widths that are multiples of 16.
Status judge_target_precision(const std::string& device, const std::string& name, int major, int minor, const FunctionConfig& function);

// All of it, and heads, 8-bit floats and memory for `function` when not null. Errors: kFixConfig.
Status check_device(const std::string& device, const FunctionConfig* function);
// The device's part of a numerics class.
std::string device_class(const std::string& device);

}  // namespace tessera::cuda
