#include "worker/model/backend.h"

#include <cstring>

#include "worker/model/numerics.h"
#include "worker/optimizer/update_kernels.h"

namespace tessera::model {
namespace {

Backend* installed = nullptr;

}  // namespace

void install_backend(Backend& backend) { installed = &backend; }
Backend* backend() { return installed; }

bool is_cuda(const std::string& device) { return device == "cuda" || device.starts_with("cuda:"); }

Status prepare_device(const std::string& device, const FunctionConfig* function) {
  if (device == "cpu") return {};
  if (!is_cuda(device)) return fail(ErrorCode::kFixConfig, "[engine] device " + device + " is not one that Tessera computes on; set operation.device: cpu or cuda");
  if (!installed)
    return fail(ErrorCode::kFixConfig, "[engine] device " + device + ": this program computes on cpu only; set operation.device: cpu, or build with CUDA (cmake -DTESSERA_CUDA=on) and run tessera-trainer-cuda");
  return installed->prepare(device, function);
}

Result<std::unique_ptr<Ops>> make_ops(const Layout& layout, const std::string& precision, const std::string& device) {
  TESSERA_TRY(prepare_device(device, nullptr));
  if (is_cuda(device)) return installed->make_ops(layout, precision, device);
  choose_matmul();
  return make_cpu_ops(layout, precision);
}

State to_device(State host, const std::string& precision, const std::string& device) { return is_cuda(device) ? installed->to_device(host, precision, device) : std::move(host); }

State to_host(const State& s) {
  State host = s;
  host.weights_half.clear(), host.target_half.clear();
  for (auto* role : {&host.weights, &host.target, &host.exp_avg, &host.exp_avg_sq})
    for (at::Tensor& buffer : *role)
      if (buffer.defined()) buffer = buffer.cpu();
  for (at::Tensor* table : {&host.context_position, &host.target_position, &host.predictor_position}) *table = table->cpu();
  return host;
}

FlatBuffers make_buffers(const Layout& layout, const std::string& device) { return is_cuda(device) ? installed->make_buffers(layout, device) : make_buffers(layout); }

void add_into(at::Tensor& a, const at::Tensor& b) {
  if (a.is_cuda()) a.add_(b);
  else optimizer::kernels::accumulate(a.mutable_data_ptr<float>(), b.const_data_ptr<float>(), a.numel());
}

void copy_to_host(void* to, const void* from, int64_t size_bytes, bool from_device) {
  if (from_device) installed->to_host(to, from, size_bytes);
  else std::memcpy(to, from, size_t(size_bytes));
}

}  // namespace tessera::model
