#include "worker/cuda/device_checks.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <ifaddrs.h>
#include <nccl.h>

#include <cstdlib>
#include <set>

#include "common/model_size.h"
#include "common/version.h"

namespace tessera::cuda {
namespace {

DriverFacts ask_driver() {
  DriverFacts facts;
  cudaDriverGetVersion(&facts.driver_version);
  cudaRuntimeGetVersion(&facts.runtime_version);
  if (const cudaError_t code = cudaGetDeviceCount(&facts.device_count); code != cudaSuccess) facts.error = cudaGetErrorString(code), facts.device_count = 0;
  cudaGetLastError();
  return facts;
}

std::vector<std::string> interfaces() {
  std::set<std::string> names;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) == 0) {
    for (const ifaddrs* one = list; one; one = one->ifa_next) names.insert(one->ifa_name);
    freeifaddrs(list);
  }
  return {names.begin(), names.end()};
}

}  // namespace

Status check_device(const std::string& device, const FunctionConfig* function) {
  TESSERA_TRY(judge_driver(device, ask_driver()));
  cudaDeviceProp properties{};
  if (const cudaError_t code = cudaGetDeviceProperties(&properties, device_index(device)); code != cudaSuccess)
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + " cannot be used: " + cudaGetErrorString(code));
  TESSERA_TRY(judge_capability(device, properties.name, properties.major, properties.minor));
  const char* setting = std::getenv("NCCL_SOCKET_IFNAME");
  TESSERA_TRY(judge_interface(setting ? setting : "", interfaces()));
  if (!function) return {};
  TESSERA_TRY(judge_heads(*function));
  TESSERA_TRY(judge_target_precision(device, properties.name, properties.major, properties.minor, *function));
  size_t available = 0, all = 0;
  cudaSetDevice(device_index(device));
  if (const cudaError_t code = cudaMemGetInfo(&available, &all); code != cudaSuccess)
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + " cannot be used: " + cudaGetErrorString(code));
  // The least that any rank needs: one tile.
  const std::string refusal = gpu_memory_refusal(*function, gpu_memory(*function, expected_mask_lengths(*function), 1, 1), int64_t(available), device);
  if (!refusal.empty()) return fail(ErrorCode::kFixConfig, refusal);
  return {};
}

std::string device_class(const std::string& device) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, device_index(device)) != cudaSuccess) return "cuda;model=none";
  int runtime = 0, nccl = 0;
  cudaRuntimeGetVersion(&runtime);
  ncclGetVersion(&nccl);
  const auto number = [](int64_t value) { return std::to_string(value); };
  return std::string("cuda;model=") + properties.name + ";sm=" + number(properties.multiProcessorCount) + ";capability=" + number(properties.major) + "." + number(properties.minor) + ";cuda=" + number(runtime) +
         ";cublas=" + number(CUBLAS_VERSION) + ";cudnn=" + number(at::detail::getCUDAHooks().versionCuDNN()) + ";nccl=" + number(nccl) + ";libtorch=" + kLibtorchVersion + ";tessera=" + kVersion + "+" + build_commit();
}

}  // namespace tessera::cuda
