#include "worker/evaluate/features.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <algorithm>
#include <cmath>

#include "worker/model/kernels.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kBatch = 64;
constexpr size_t kLastBlocks = 4;

template <typename Function>
at::Tensor in_batches(const at::Tensor& pixels, int64_t batch, const Function& function) {
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < pixels.size(0); first += batch) parts.push_back(function(pixels.narrow(0, first, std::min(batch, pixels.size(0) - first)).contiguous()));
  return at::cat(parts);
}

// Pixels a side of the blocks that leave at most `most` of them along `size`.
int64_t block_for(int64_t size, int64_t most) {
  int64_t block = 1;
  while (size / block > most || size % block != 0) ++block;
  return block;
}

}  // namespace

Result<EncoderKind> encoder_kind(const std::string& name) {
  if (name == "target") return EncoderKind::kTarget;
  if (name == "context") return EncoderKind::kContext;
  return fail(ErrorCode::kUsage, "--encoder is target or context, not " + name);
}

FrozenEncoder::FrozenEncoder(const LoadedModel& model, EncoderKind kind)
    : model_(model),
      weights_(kind == EncoderKind::kContext ? model.state.weights : model.state.target),
      position_(kind == EncoderKind::kContext ? model.state.context_position : model.state.target_position),
      passes_(model.state.layout, model.function.precision != "fp32"),
      places_(model::encoder_places(model.state.layout)) {}

int64_t FrozenEncoder::channels(Pooling pooling) const {
  const int64_t blocks = pooling == Pooling::kLast4 ? int64_t(std::min(kLastBlocks, places_.blocks.size())) : 1;
  return blocks * model_.function.model.embed_dim;
}

at::Tensor patch_rows(const FunctionConfig& function, const at::Tensor& pixels) {
  const int64_t b = pixels.size(0), size = pixels.size(1), patch = function.model.patch_size, count = (size / patch) * (size / patch);
  float mean[3], std[3];
  for (size_t c = 0; c < 3; ++c) mean[c] = float(function.data.mean[c]), std[c] = float(function.data.std[c]);
  at::Tensor rows = at::empty({b * count, 3 * patch * patch}, at::kFloat);
  const uint8_t* in = pixels.const_data_ptr<uint8_t>();
  float* out = rows.mutable_data_ptr<float>();
  for (int64_t i = 0; i < b; ++i) model::kernels::patchify(in + i * size * size * 3, size, patch, mean, std, out + i * count * 3 * patch * patch);
  return rows;
}

at::Tensor FrozenEncoder::embed(const at::Tensor& pixels) const {
  const at::Tensor position = model::interpolate_position(position_, grid(pixels.size(1)));
  return passes_.linear(weights_, patch_rows(model_.function, pixels), places_.patch_w, places_.patch_b).add_(position.repeat({pixels.size(0), 1}));
}

at::Tensor FrozenEncoder::batch_features(const at::Tensor& pixels, Pooling pooling) const {
  const int64_t b = pixels.size(0), heads = model_.function.model.num_heads;
  const size_t depth = places_.blocks.size(), kept = pooling == Pooling::kLast4 ? std::min(kLastBlocks, depth) : 1;
  at::Tensor x_rd = embed(pixels);
  std::vector<at::Tensor> layers;
  for (size_t i = 0; i < depth; ++i) {
    x_rd = passes_.block(weights_, places_.blocks[i], x_rd, {b, heads}, nullptr);
    if (i + kept < depth) continue;
    const at::Tensor tokens_nkd = passes_.norm(weights_, x_rd, places_.norm_w, places_.norm_b).out_rd.view({b, -1, x_rd.size(1)});
    layers.push_back(pooling == Pooling::kPatches ? tokens_nkd : tokens_nkd.mean(1));
  }
  return layers.size() == 1 ? layers[0] : at::cat(layers, 1);
}

at::Tensor FrozenEncoder::features(const at::Tensor& pixels, Pooling pooling) const {
  at::NoGradGuard no_grad;
  return in_batches(pixels, kBatch, [&](const at::Tensor& batch) { return batch_features(batch, pooling); });
}

at::Tensor FrozenEncoder::attention(const at::Tensor& pixels) const {
  at::NoGradGuard no_grad;
  const int64_t heads = model_.function.model.num_heads;
  return in_batches(pixels, 8, [&](const at::Tensor& batch) {
    const int64_t b = batch.size(0);
    at::Tensor x_rd = embed(batch);
    model::BlockTape tape;
    for (const auto& block : places_.blocks) x_rd = passes_.block(weights_, block, x_rd, {b, heads}, &tape);
    const int64_t n = x_rd.size(0) / b, d = x_rd.size(1);
    const at::Tensor qkv = tape.qkv_rd.view({b, n, 3, heads, d / heads}).permute({2, 0, 3, 1, 4});
    const at::Tensor scores = at::matmul(qkv.select(0, 0), qkv.select(0, 1).transpose(2, 3)).mul_(1.0 / std::sqrt(double(d / heads)));
    return at::softmax(scores, -1).mean(2);
  });
}

at::Tensor pixel_features(const at::Tensor& pixels) {
  const int64_t size = pixels.size(1), block = block_for(size, kPixelSide);
  return in_batches(pixels, 256, [&](const at::Tensor& batch) {
    return batch.to(at::kFloat).view({-1, size / block, block, size / block, block, 3}).mean(at::IntArrayRef{2, 4}).reshape({batch.size(0), -1}).div_(255.0);
  });
}

at::Tensor pixel_patches(const at::Tensor& pixels, int64_t grid) {
  const int64_t patch = pixels.size(1) / grid, block = block_for(patch, 8), side = patch / block;
  return in_batches(pixels, 64, [&](const at::Tensor& batch) {
    const at::Tensor small = batch.to(at::kFloat).view({-1, grid, side, block, grid, side, block, 3}).mean(at::IntArrayRef{3, 6});  // [b, grid, side, grid, side, 3]
    return small.permute({0, 1, 3, 2, 4, 5}).reshape({batch.size(0), grid * grid, side * side * 3}).div_(255.0);
  });
}

Status check_finite(const at::Tensor& features, const std::string& what) {
  if (at::isfinite(features).all().item<bool>()) return {};
  return fail(ErrorCode::kFixData, "the features of " + what + " are not all finite numbers: the weights have diverged; take an earlier checkpoint");
}

}  // namespace tessera::evaluate
