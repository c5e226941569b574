#include "worker/evaluate/patch_pictures.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sort.h>
#include <algorithm>

#include "worker/evaluate/png_sheet.h"
#include "worker/evaluate/samples.h"

namespace tessera::evaluate {
namespace {

constexpr Color kPaper{250, 249, 246};
constexpr int kGap = 8, kSide = 128, kMostHeads = 8;

Result<Samples> spread_samples(const LoadedModel& model, const PatchPictureOptions& o) {
  TESSERA_ASSIGN(const auto source, SampleSource::open(o.data, o.threads));
  const int64_t count = source->info().sample_count;
  if (count < o.images) return fail(ErrorCode::kFixData, o.data + " has " + std::to_string(count) + " images, fewer than --rows " + std::to_string(o.images));
  std::vector<SampleId> ids;
  for (int64_t i = 0; i < o.images; ++i) ids.push_back(i * count / o.images);
  return source->read(ids, int(model.function.model.image_size));
}

int zoom_of(int size) { return std::max(1, kSide / size); }

void draw_patches(Canvas& canvas, int left, int top, int side, int64_t grid, const float* rgb) {
  const auto byte = [](float v) { return uint8_t(std::clamp(v, 0.0f, 1.0f) * 255.0f + 0.5f); };
  for (int y = 0; y < side; ++y)
    for (int x = 0; x < side; ++x) {
      const float* c = rgb + (int64_t{y} * grid / side * grid + int64_t{x} * grid / side) * 3;
      canvas.set(left + x, top + y, {byte(c[0]), byte(c[1]), byte(c[2])});
    }
}

}  // namespace

at::Tensor pca_colors(const at::Tensor& patches_rd) {
  at::NoGradGuard no_grad;
  const at::Tensor centred = patches_rd - patches_rd.mean(0, true);
  const auto [values, vectors] = at::linalg_eigh(centred.t().matmul(centred).to(at::kDouble));
  const int64_t d = vectors.size(1), wanted = std::min<int64_t>(3, d);
  std::vector<at::Tensor> channels;
  for (int64_t c = 0; c < 3; ++c) {
    at::Tensor vector = vectors.select(1, std::max<int64_t>(0, d - 1 - std::min(c, wanted - 1))).to(at::kFloat);  // ascending: the last is the first
    if (vector.index_select(0, vector.abs().argmax().view({1})).item<float>() < 0) vector = -vector;
    const at::Tensor score = centred.matmul(vector), sorted = std::get<0>(at::sort(score));
    const int64_t n = sorted.size(0);
    const float low = sorted[n / 100].item<float>(), high = sorted[n - 1 - n / 100].item<float>();
    channels.push_back(((score - low) / std::max(high - low, 1e-12f)).clamp(0, 1).unsqueeze(1));
  }
  return at::cat(channels, 1).contiguous();
}

Status draw_pca(const LoadedModel& model, const PatchPictureOptions& o) {
  TESSERA_ASSIGN(const Samples samples, spread_samples(model, o));
  const FrozenEncoder encoder(model, o.encoder);
  const at::Tensor patches_nkd = encoder.features(samples.pixels, Pooling::kPatches);
  TESSERA_TRY(check_finite(patches_nkd, model.checkpoint));
  const at::Tensor colors = pca_colors(patches_nkd.reshape({-1, patches_nkd.size(2)}));
  const int size = int(samples.pixels.size(1)), zoom = zoom_of(size), side = size * zoom, count = int(o.images), columns = std::min(3, count), rows = (count + columns - 1) / columns;
  Canvas canvas(kGap + columns * (2 * side + 2 * kGap), kGap + rows * (side + kGap), kPaper);
  for (int i = 0; i < count; ++i) {
    const int left = kGap + i % columns * (2 * side + 2 * kGap), top = kGap + i / columns * (side + kGap);
    canvas.draw_image(left, top, samples.pixels.const_data_ptr<uint8_t>() + int64_t{i} * size * size * 3, size, zoom);
    draw_patches(canvas, left + side + 2, top, side, encoder.grid(size), colors.const_data_ptr<float>() + int64_t{i} * patches_nkd.size(1) * 3);
  }
  return canvas.write(o.out);
}

Status draw_attention(const LoadedModel& model, const PatchPictureOptions& o) {
  TESSERA_ASSIGN(const Samples samples, spread_samples(model, o));
  const FrozenEncoder encoder(model, o.encoder);
  const at::Tensor heads_nhk = encoder.attention(samples.pixels), maps_nmk = at::cat({heads_nhk.mean(1, true), heads_nhk}, 1).contiguous();
  TESSERA_TRY(check_finite(maps_nmk, model.checkpoint));
  const int size = int(samples.pixels.size(1)), zoom = zoom_of(size), side = size * zoom, maps = std::min(kMostHeads + 1, int(maps_nmk.size(1)));
  const int64_t grid = encoder.grid(size), patches = grid * grid;
  Canvas canvas(kGap + (maps + 1) * (side + kGap), kGap + int(o.images) * (side + kGap), kPaper);
  for (int i = 0; i < int(o.images); ++i) {
    const int top = kGap + i * (side + kGap);
    canvas.draw_image(kGap, top, samples.pixels.const_data_ptr<uint8_t>() + int64_t{i} * size * size * 3, size, zoom);
    for (int m = 0; m < maps; ++m) {
      const float* map = maps_nmk.const_data_ptr<float>() + (int64_t{i} * maps_nmk.size(1) + m) * patches;
      const auto [low, high] = std::minmax_element(map, map + patches);
      const float range = std::max(1e-12f, *high - *low);
      std::vector<float> rgb;  // black, red, yellow, white
      for (int64_t p = 0; p < patches; ++p)
        for (int c = 0; c < 3; ++c) rgb.push_back(3 * (map[p] - *low) / range - float(c));
      draw_patches(canvas, kGap + (m + 1) * (side + kGap), top, side, grid, rgb.data());
    }
  }
  return canvas.write(o.out);
}

}  // namespace tessera::evaluate
