#include "worker/evaluate/monitors.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <cmath>

#include "common/clock.h"
#include "common/log.h"
#include "worker/evaluate/labelled.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kFewest = 10, kPatchRows = 20000;
constexpr double kLowRank = 1.5, kLowDeviation = 1e-3, kNormEps = 1e-5;

double rank_of(const at::Tensor& centred_nd) {
  const at::Tensor values = at::linalg_eigvalsh(centred_nd.t().matmul(centred_nd)).clamp_min(0);
  const double* v = values.const_data_ptr<double>();
  double total = 0, entropy = 0;
  for (int64_t i = 0; i < values.numel(); ++i) total += v[i];
  if (!(total > 0)) return 1;
  for (int64_t i = 0; i < values.numel(); ++i)
    if (const double p = v[i] / total; p > 1e-12) entropy -= p * std::log(p);
  return std::exp(entropy);
}

at::Tensor loss_of(const std::string& kind, const at::Tensor& prediction, const at::Tensor& wanted) {
  constexpr int64_t kNoReduction = 0;
  if (kind == "l1") return (prediction - wanted).abs();
  if (kind == "l2") return (prediction - wanted).square();
  return at::smooth_l1_loss(prediction, wanted, kNoReduction);
}

Result<nlohmann::ordered_json> predictor_losses(const LoadedModel& model, const MonitorOptions& o, int64_t images) {
  TESSERA_ASSIGN(TileReader reader, TileReader::open(model.function, o.data, o.threads));
  TESSERA_ASSIGN(const auto engine, model::Engine::make(model.function, "cpu"));
  BlockLoss losses(model.function.optimizer.loss);
  for (int64_t index = 0; index * model.function.batch.tile_size < images; ++index) {
    TESSERA_ASSIGN(const SeenTile seen, reader.read(index));
    losses.add(seen.header, engine->outputs(model.state, seen.tile));
  }
  return losses.to_json();
}

}  // namespace

Spread spread(const at::Tensor& rows_nd) {
  at::NoGradGuard no_grad;
  const at::Tensor x = rows_nd.to(at::kDouble), centred = x - x.mean(0, true);
  const double n = double(x.size(0));
  const at::Tensor deviation = (centred.square().sum(0) / std::max(1.0, n - 1)).sqrt();
  Spread out;
  out.deviation_mean = deviation.mean().item<double>(), out.deviation_min = deviation.min().item<double>();
  const at::Tensor unit = x / x.norm(2, {1}, true).clamp_min(1e-12), sum = unit.sum(0);
  out.mean_cosine = (sum.dot(sum).item<double>() - unit.square().sum().item<double>()) / std::max(1.0, n * (n - 1));  // all pairs without the diagonal
  const double size = x.square().mean().sqrt().item<double>();
  out.effective_rank = out.deviation_mean > 1e-6 * size ? rank_of(centred) : 1;  // below that, what is left to rank is rounding
  return out;
}

nlohmann::ordered_json to_json(const Spread& s) {
  return {{"effective_rank", s.effective_rank}, {"deviation_mean", s.deviation_mean}, {"deviation_min", s.deviation_min}, {"mean_cosine", s.mean_cosine}, {"collapsed", collapsed(s)}};
}

// Cosines of 1 - 1e-6 are deviations of a thousandth of the length.
bool collapsed(const Spread& s) { return s.effective_rank < kLowRank || 1 - s.mean_cosine < kLowDeviation * kLowDeviation; }

void BlockLoss::add(const proto::TileHeader& h, const model::TileOutputs& outputs) {
  at::NoGradGuard no_grad;
  const at::Tensor loss_s = loss_of(loss_, outputs.prediction_bkd, outputs.wanted_bkd).mean(at::IntArrayRef{1, 2}).contiguous();
  const int64_t images = int64_t(h.sample_ids.size()), contexts = int64_t(h.contexts.size());
  for (int64_t s = 0; s < loss_s.size(0); ++s) {  // (target, context, image)
    const BlockBox box = block_box(h, s / (contexts * images), s % images);
    const auto third = [&](int64_t first, int64_t length) { return std::min<int64_t>(2, (2 * first + length) * 3 / (2 * int64_t{h.grid})); };
    for (Mean* mean : {&all_, &position_[third(box.top, box.height)][third(box.left, box.width)], &size_[std::to_string(box.height) + "x" + std::to_string(box.width)]})
      ++mean->blocks, mean->sum += double(loss_s.const_data_ptr<float>()[s]);
  }
}

nlohmann::ordered_json BlockLoss::json_of(const Mean& mean) {
  nlohmann::ordered_json out{{"blocks", mean.blocks}, {"loss", nullptr}};
  if (mean.blocks > 0) out["loss"] = mean.sum / double(mean.blocks);
  return out;
}

nlohmann::ordered_json BlockLoss::to_json() const {
  nlohmann::ordered_json out = json_of(all_);
  out["by_position"] = nlohmann::ordered_json::array();
  for (const auto& row : position_) out["by_position"].push_back({json_of(row[0]), json_of(row[1]), json_of(row[2])});
  out["by_size"] = nlohmann::ordered_json::object();
  for (const auto& [name, mean] : size_) out["by_size"][name] = json_of(mean);
  return out;
}

Result<nlohmann::ordered_json> evaluate_monitors(const LoadedModel& model, const MonitorOptions& o) {
  const Millis start = monotonic_ms();
  std::vector<at::Tensor> images, patches;
  int64_t count = 0;
  {
    TESSERA_ASSIGN(const auto source, SampleSource::open(o.data, o.threads));
    const std::vector<SampleId> ids = choose_samples(source->info().sample_count, o.images, o.seed, -1);
    count = int64_t(ids.size());
    if (count < kFewest) return fail(ErrorCode::kFixData, o.data + " has " + std::to_string(count) + " images; monitors need at least " + std::to_string(kFewest));
    const FrozenEncoder encoder(model, o.encoder);
    const int64_t keep = std::max<int64_t>(1, kPatchRows / count);  // patches of an image, evenly spread
    TESSERA_TRY(read_in_chunks(*source, ids, int(model.function.model.image_size), [&](const Samples& some) -> Status {
      const at::Tensor tokens_nkd = encoder.features(some.pixels, Pooling::kPatches);
      images.push_back(tokens_nkd.mean(1));
      const int64_t every = std::max<int64_t>(1, tokens_nkd.size(1) / keep), d = tokens_nkd.size(2);
      patches.push_back(at::layer_norm(tokens_nkd.slice(1, 0, std::nullopt, every), {d}, {}, {}, kNormEps).reshape({-1, d}));
      return {};
    }));
  }
  const at::Tensor images_nd = at::cat(images), patches_nd = at::cat(patches);
  TESSERA_TRY(check_finite(images_nd, model.checkpoint));
  const Spread of_images = spread(images_nd), of_patches = spread(patches_nd);
  nlohmann::ordered_json out{{"schema", 1}, {"metric", "effective_rank"}, {"value", of_images.effective_rank}, {"standard_error", 0}, {"features", to_json(of_images)}, {"patches", to_json(of_patches)}};
  if (model.kind != import::ModelKind::kHuggingFace) {
    TESSERA_ASSIGN(out["predictor"], predictor_losses(model, o, count));
  }
  out["settings"] = {{"protocol", "monitors"}, {"encoder", o.encoder == EncoderKind::kTarget ? "target" : "context"}, {"data", o.data}, {"images", count}, {"seed", o.seed}, {"model", model.checkpoint},
                     {"step", model.state.step}, {"checkpoint_digest", to_hex(model.state.digest())}, {"seconds", double(monotonic_ms() - start) / 1000.0}};
  return out;
}

}  // namespace tessera::evaluate
