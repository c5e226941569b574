#include "worker/trainer/tile.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <cstring>

#include "worker/model/backend.h"

namespace tessera::trainer {
namespace {

at::Tensor mask_tensor(const std::vector<uint16_t>& list, int64_t images, int64_t length) {
  at::Tensor out = at::empty({images, length}, at::kLong);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < list.size(); ++i) to[i] = list[i];
  return out;
}

}  // namespace

model::Tile to_tensors(const FetchedTile& fetched) {
  const auto& h = fetched.header;
  const int64_t images = int64_t(h.sample_ids.size());
  model::Tile tile;
  tile.pixels = at::empty({images, h.image_size, h.image_size, 3}, at::kByte);
  std::memcpy(tile.pixels.mutable_data_ptr(), fetched.pixels.data(), fetched.pixels.size());
  for (const auto& list : h.contexts) tile.contexts.push_back(mask_tensor(list, images, h.context_length));
  for (const auto& list : h.targets) tile.targets.push_back(mask_tensor(list, images, h.target_length));
  return tile;
}

void adopt_target(model::State& state, const float* target) {
  const float* from = target;
  for (auto& buffer : state.target) {
    if (!buffer.defined()) continue;
    if (buffer.is_cuda()) buffer.copy_(at::from_blob(const_cast<float*>(from), {buffer.numel()}, buffer.options()));
    else std::memcpy(buffer.mutable_data_ptr(), from, size_t(buffer.numel()) * sizeof(float));
    from += buffer.numel();
  }
  if (model::on_device(state.weights)) model::backend()->refresh_target(state);
}

std::shared_ptr<float> device_floats(int64_t n, const std::string& device) {
  const at::Tensor memory = at::empty({n}, at::TensorOptions().dtype(at::kFloat).device(c10::Device(device)));
  return {memory.mutable_data_ptr<float>(), [memory](float*) {}};
}

}  // namespace tessera::trainer
