#include "worker/model/numerics.h"

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "common/philox.h"
#include "common/version.h"
#include "worker/model/backend.h"

namespace tessera::model {
namespace {

constexpr double kTrueFp32 = 1e-6;

at::Tensor random_matrix(int64_t rows, int64_t columns, uint64_t stream) {
  at::Tensor out = at::empty({rows, columns}, at::kFloat);
  PhiloxStream random(0, Purpose::kProbe, stream, 0);
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); ++i) to[i] = random.next_float() - 0.5f;
  return out;
}

// Largest error of an fp32 product [rows, inner] x [inner, columns] against fp64, relative to the largest element.
double product_error(int64_t rows, int64_t inner, int64_t columns) {
  at::NoGradGuard no_grad;
  const at::Tensor a = random_matrix(rows, inner, 0), b = random_matrix(columns, inner, 1), bias = at::zeros({columns}, at::kFloat);
  const at::Tensor product = at::addmm(bias, a, b.t());
  const float *pa = a.const_data_ptr<float>(), *pb = b.const_data_ptr<float>(), *got = product.const_data_ptr<float>();
  double worst = 0, largest = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < inner; ++k) sum += double(pa[i * inner + k]) * double(pb[j * inner + k]);
      worst = std::max(worst, std::fabs(double(got[i * columns + j]) - sum));
      largest = std::max(largest, std::fabs(sum));
    }
  return worst / largest;
}

// The first CPU's line of that name in /proc/cpuinfo, after the colon; empty where the kernel does not say.
std::string cpu_line(const std::string& name) {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with(name)) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "";
}

std::string decide() {
  if (at::get_cpu_capability() != "AVX512" || cpu_line("flags").find(" amx_tile") != std::string::npos) return "mkl-fp32";
  at::globalContext().setFloat32MatmulPrecision("medium");
  if (std::max({product_error(64, 96, 48), product_error(192, 384, 128), product_error(1024, 96, 384)}) <= kTrueFp32) return "onednn-fp32";
  at::globalContext().setFloat32MatmulPrecision("highest");
  return "mkl-fp32";
}

}  // namespace

void pin_library_environment() {
  for (const char* name : {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "OMP_DYNAMIC", "MKL_DYNAMIC",
                           "MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "DISABLE_ADDMM_CUDA_LT",
                           "CUBLASLT_WORKSPACE_SIZE", "PYTORCH_TUNABLEOP_ENABLED", "TORCH_CUDNN_SDPA_DEPRIORITIZED"})
    unsetenv(name);
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 1);  // own workspaces: without it a product's bits may differ from call to call
  setenv("MKL_CBWR", "AVX2", 1);
  // Activations of many megabytes come and go in every block; glibc would take each from the kernel and give it back, and
  // zeroing its pages cost a tenth of a step. The heap keeps what it had instead. No bit depends on it.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

const std::string& choose_matmul() {
  static const std::string choice = decide();
  return choice;
}

std::string numerics_class(const std::string& device, int threads) {
  if (is_cuda(device) && backend()) return backend()->numerics_class(device);
  const std::string model = cpu_line("model name");  // "AMD EPYC 9B45"
  return device.substr(0, device.find(':')) + ";model=" + (model.empty() ? "unknown" : model) + ";isa=" + at::get_cpu_capability() + ";mkl_cbwr=AVX2;matmul=" + choose_matmul() + ";threads=" + std::to_string(threads) +
         ";libtorch=" + kLibtorchVersion + ";tessera=" + kVersion + "+" + build_commit();
}

}  // namespace tessera::model
