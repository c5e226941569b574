// The judgements of device_checks.h: no CUDA call, so that programs without CUDA can be tested with them.
#include <cstdlib>

#include "worker/cuda/device_checks.h"

namespace tessera::cuda {
namespace {

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  for (size_t from = 0; from <= text.size();) {
    const size_t to = std::min(text.find(',', from), text.size());
    if (to > from) out.push_back(text.substr(from, to - from));
    from = to + 1;
  }
  return out;
}

}  // namespace

int device_index(const std::string& device) {
  const size_t colon = device.find(':');
  return colon == std::string::npos ? 0 : std::atoi(device.c_str() + colon + 1);
}

Status judge_driver(const std::string& device, const DriverFacts& f) {
  if (f.driver_version == 0)
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + ": this machine has no NVIDIA driver" + (f.error.empty() ? "" : " (" + f.error + ")") + "; set operation.device: cpu, or install a driver for CUDA " + version_text(f.runtime_version));
  if (f.driver_version / 1000 < f.runtime_version / 1000)
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + ": the NVIDIA driver supports CUDA up to " + version_text(f.driver_version) + ", this build runs on CUDA " + version_text(f.runtime_version) +
                                           "; install a newer driver (580 or later for CUDA 13), or set operation.device: cpu");
  if (!f.error.empty() || f.device_count == 0)
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + ": no CUDA device can be used" + (f.error.empty() ? "" : " (" + f.error + ")") + "; see nvidia-smi and CUDA_VISIBLE_DEVICES, or set operation.device: cpu");
  if (device_index(device) >= f.device_count)
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + " is not there: this machine has " + std::to_string(f.device_count) + " CUDA device" + (f.device_count == 1 ? "" : "s") + " (cuda:0 to cuda:" + std::to_string(f.device_count - 1) +
                                           "); lower operation.workers, or give tessera-worker other --devices");
  return {};
}

Status judge_capability(const std::string& device, const std::string& name, int major, int minor) {
  if (major >= 8) return {};
  return fail(ErrorCode::kFixConfig, "[engine] device " + device + " (" + name + ") has compute capability " + std::to_string(major) + "." + std::to_string(minor) + "; Tessera needs 8.0 (A100) or newer: use another device, or set operation.device: cpu");
}

Status judge_interface(const std::string& setting, const std::vector<std::string>& interfaces) {
  if (setting.empty()) return {};
  const bool none_of = setting[0] == '^', exact = !none_of && setting[0] == '=';
  const auto matches = [&](const std::string& interface) {
    for (const std::string& word : split(setting.substr(none_of || exact ? 1 : 0)))
      if (exact ? interface == word : interface.starts_with(word)) return true;
    return false;
  };
  for (const std::string& interface : interfaces)
    if (matches(interface) != none_of) return {};
  return fail(ErrorCode::kFixConfig, "[nccl] NCCL_SOCKET_IFNAME is '" + setting + "', but no network interface of this machine fits; it has " + joined(interfaces) + ": set it to one of them, or unset it and NCCL chooses");
}

Status judge_heads(const FunctionConfig& f) {
  if (f.precision == "fp32") return {};
  const auto refuse = [&](const std::string& what, int64_t width, int64_t heads) {
    return fail(ErrorCode::kFixConfig, "[engine] " + what + ": " + std::to_string(width) + " channels in " + std::to_string(heads) + " heads make heads of " + std::to_string(width / heads) +
                                           "; on a GPU in " + f.precision + " they must be a multiple of 8: choose other heads, or function.precision: fp32");
  };
  if (f.model.embed_dim / f.model.num_heads % 8 != 0) return refuse("function.model", f.model.embed_dim, f.model.num_heads);
  if (f.predictor.embed_dim / f.predictor.num_heads % 8 != 0) return refuse("function.predictor", f.predictor.embed_dim, f.predictor.num_heads);
  return {};
}

Status judge_target_precision(const std::string& device, const std::string& name, int major, int minor, const FunctionConfig& f) {
  if (f.target_precision != "fp8") return {};
  if (major < 8 || (major == 8 && minor < 9))
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + " (" + name + ") has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
                                           "; function.target_precision: fp8 needs 8.9 (L40, H100) or newer: set it to same, or use another device");
  for (const auto& [what, width] : {std::pair{"embed_dim", f.model.embed_dim}, std::pair{"MLP", f.model.hidden_dim()}})
    if (width % 16 != 0)
      return fail(ErrorCode::kFixConfig, std::string("[engine] function.model has an ") + what + " of " + std::to_string(width) + " channels; on a GPU function.target_precision: fp8 needs a multiple of 16: set it to same, or choose another width");
  return {};
}

}  // namespace tessera::cuda
