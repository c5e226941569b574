// Shared by the GPU tests: they skip, and say why, where there is no GPU.
#pragma once

#include <ATen/ATen.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "tests/unit/model/small_model.h"
#include "worker/cuda/cuda_backend.h"
#include "worker/cuda/device_checks.h"

namespace tessera::test {

inline constexpr const char* kDevice = "cuda:0";

// "" when cuda:0 can be used.
inline std::string why_no_gpu() {
  static const std::string reason = [] {
    model::install_backend(cuda::cuda_backend());
    const Status ready = model::prepare_device(kDevice, nullptr);
    return ready ? std::string() : ready.error().message;
  }();
  return reason;
}

// A model whose heads fit the fused attention kernels (multiples of eight channels).
inline FunctionConfig gpu_function(const std::string& precision) {
  FunctionConfig f;
  f.model = {"custom", 8, 64, 96, 3, 4, 4.0, false};
  f.predictor = {48, 2, 2, 4.0};
  f.precision = precision;
  return f;
}

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!why_no_gpu().empty()) GTEST_SKIP() << "no GPU: " << why_no_gpu();
  }
};

}  // namespace tessera::test
