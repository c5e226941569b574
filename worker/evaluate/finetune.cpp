#include "worker/evaluate/finetune.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <cmath>
#include <numeric>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/philox.h"
#include "worker/evaluate/linear.h"

namespace tessera::evaluate {
namespace {

constexpr double kNormEps = 1e-6, kSmoothing = 0.1, kWarmup = 0.1;
constexpr uint32_t kOrderStream = 600, kFlipStream = 601;
constexpr int64_t kTestBatch = 64, kMostPixelBytes = int64_t{4} << 30;

at::Tensor flipped(const at::Tensor& pixels, PhiloxStream& random) {
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < pixels.size(0); ++i) {
    const at::Tensor one = pixels.select(0, i);
    rows.push_back(random.next_below(2) == 1 ? one.flip({1}) : one);
  }
  return at::stack(rows);
}

Status check_memory(const LoadedModel& model, const EvaluationOptions& o) {
  const int64_t each = model.function.model.image_size * model.function.model.image_size * 3 * 2, count = o.train_images + o.test_images;  // twice: chunks and their whole
  if (count <= kMostPixelBytes / each) return {};
  return fail(ErrorCode::kUsage, "the pixels of " + std::to_string(count) + " images need " + human_bytes(count * each) + "; at most " + std::to_string(kMostPixelBytes / each) +
                                     " images fit: lower --train-images and --test-images");
}

struct Runs {  // over seeds or draws
  std::vector<double> values;
  double standard_error(int64_t test_images) const {
    const MeanError m = mean_error(values);
    return values.size() > 1 ? m.standard_error : std::sqrt(m.mean * (1 - m.mean) / double(test_images));
  }
};

nlohmann::ordered_json entry_of(const Target& target, int64_t test_images, const std::map<std::string, Runs>& scores) {
  const Runs& own = scores.at("model");
  nlohmann::ordered_json out{{"metric", "accuracy"}, {"value", mean_error(own.values).mean}, {"standard_error", own.standard_error(test_images)}, {"classes", target.classes}};
  if (own.values.size() > 1) out["values"] = own.values;
  if (!target.edges.empty()) out["bin_edges"] = target.edges;
  for (const std::string name : {"random_init", "pixels"}) {
    if (!scores.contains(name)) continue;
    out["baselines"][name] = mean_error(scores.at(name).values).mean;
    out["baseline_standard_errors"][name] = scores.at(name).standard_error(test_images);
  }
  return out;
}

nlohmann::ordered_json document_of(const std::string& protocol, const LoadedModel& model, const EvaluationOptions& o, const FinetuneOptions& f, const Labelled& data, const std::string& label,
                                   const nlohmann::ordered_json& entry, Millis start) {
  nlohmann::ordered_json out{{"schema", 1}};
  for (const auto& [key, value] : entry.items()) out[key] = value;
  out["label"] = label;
  out["probes"] = {{label, entry}};
  out["settings"] = common_settings(protocol, model, o, data);
  for (const auto& [key, value] : {std::pair{"lr", f.lr}, {"weight_decay", f.weight_decay}, {"layer_decay", f.layer_decay}}) out["settings"][key] = value;
  out["settings"]["epochs"] = f.epochs, out["settings"]["batch"] = f.batch, out["settings"]["flip"] = f.flip;
  out["settings"]["seconds"] = double(monotonic_ms() - start) / 1000.0;
  return out;
}

EvaluationOptions raw(const EvaluationOptions& o) {
  EvaluationOptions out = o;
  out.raw_pixels = true;
  return out;
}

}  // namespace

TrainableEncoder::TrainableEncoder(const LoadedModel& model, EncoderKind kind, int64_t classes, AdamW& optimizer, double layer_decay)
    : function_(model.function), places_(model::encoder_places(model.state.layout)), weights_(model.state.layout.tensors.size()) {
  const auto& role = kind == EncoderKind::kContext ? model.state.weights : model.state.target;
  const auto depth = int64_t(places_.blocks.size());
  const auto add = [&](int place, int64_t layer) {
    weights_[size_t(place)] = optimizer.add(model.state.view(role, model.state.layout.tensors[size_t(place)]).clone(), std::pow(layer_decay, double(depth + 1 - layer)));
  };
  for (const int place : {places_.patch_w, places_.patch_b}) add(place, 0);
  for (int64_t i = 0; i < depth; ++i) {
    const model::BlockPlaces& p = places_.blocks[size_t(i)];
    for (const int place : {p.norm1.weight, p.norm1.bias, p.qkv.weight, p.qkv.bias, p.proj.weight, p.proj.bias, p.norm2.weight, p.norm2.bias, p.fc1.weight, p.fc1.bias, p.fc2.weight, p.fc2.bias}) add(place, i + 1);
  }
  for (const int place : {places_.norm_w, places_.norm_b}) add(place, depth + 1);
  position_ = kind == EncoderKind::kContext ? model.state.context_position : model.state.target_position;
  head_w_ = optimizer.add(at::zeros({classes, function_.model.embed_dim}, at::kFloat)), head_b_ = optimizer.add(at::zeros({classes}, at::kFloat));
}

at::Tensor TrainableEncoder::block(const model::BlockPlaces& p, const at::Tensor& x_bnd) const {
  const int64_t b = x_bnd.size(0), n = x_bnd.size(1), d = x_bnd.size(2), heads = function_.model.num_heads;
  const at::Tensor normed = at::layer_norm(x_bnd, {d}, weight(p.norm1.weight), weight(p.norm1.bias), kNormEps);
  const at::Tensor qkv = at::linear(normed, weight(p.qkv.weight), weight(p.qkv.bias)).view({b, n, 3, heads, d / heads}).permute({2, 0, 3, 1, 4});
  const at::Tensor heard = at::scaled_dot_product_attention(qkv.select(0, 0), qkv.select(0, 1), qkv.select(0, 2)).transpose(1, 2).reshape({b, n, d});
  const at::Tensor y = x_bnd + at::linear(heard, weight(p.proj.weight), weight(p.proj.bias));
  const at::Tensor hidden = at::gelu(at::linear(at::layer_norm(y, {d}, weight(p.norm2.weight), weight(p.norm2.bias), kNormEps), weight(p.fc1.weight), weight(p.fc1.bias)));
  return y + at::linear(hidden, weight(p.fc2.weight), weight(p.fc2.bias));
}

at::Tensor TrainableEncoder::features(const at::Tensor& pixels) const {
  const int64_t b = pixels.size(0), d = function_.model.embed_dim;
  const at::Tensor rows = patch_rows(function_, pixels.contiguous());
  at::Tensor x_bnd = at::linear(rows, weight(places_.patch_w).view({d, -1}), weight(places_.patch_b)).view({b, -1, d}) + position_;
  for (const auto& p : places_.blocks) x_bnd = block(p, x_bnd);
  return at::layer_norm(x_bnd, {d}, weight(places_.norm_w), weight(places_.norm_b), kNormEps).mean(1);
}

at::Tensor TrainableEncoder::logits(const at::Tensor& pixels) const { return at::linear(features(pixels), head_w_, head_b_); }

std::vector<int64_t> finetuned(const LoadedModel& model, EncoderKind kind, const at::Tensor& train_pixels, const std::vector<int64_t>& labels, int64_t classes, const at::Tensor& test_pixels,
                               const FinetuneOptions& o, int64_t seed) {
  AdamW optimizer(o.weight_decay);
  const TrainableEncoder encoder(model, kind, classes, optimizer, o.layer_decay);
  const int64_t n = train_pixels.size(0), batch = std::min(o.batch, n), total = o.epochs * (n / batch);
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  int64_t step = 0;
  for (int64_t epoch = 0; epoch < o.epochs; ++epoch) {
    PhiloxStream random(uint64_t(seed), Purpose::kProbe, uint64_t(epoch), kOrderStream), flips(uint64_t(seed), Purpose::kProbe, uint64_t(epoch), kFlipStream);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.next_below(uint32_t(i))]);
    for (int64_t first = 0; first + batch <= n; first += batch) {
      const std::vector<int64_t> rows(order.begin() + first, order.begin() + first + batch);
      at::Tensor pixels = train_pixels.index_select(0, rows_tensor(rows));
      if (o.flip) pixels = flipped(pixels, flips);
      at::cross_entropy_loss(encoder.logits(pixels), rows_tensor(pick(labels, rows)), {}, at::Reduction::Mean, -100, kSmoothing).backward();
      optimizer.update(cosine_rate(o.lr, step++, total, kWarmup));
    }
  }
  at::NoGradGuard no_grad;
  std::vector<int64_t> out;
  for (int64_t first = 0; first < test_pixels.size(0); first += kTestBatch) {
    const at::Tensor best = encoder.logits(test_pixels.narrow(0, first, std::min(kTestBatch, test_pixels.size(0) - first))).argmax(1);
    out.insert(out.end(), best.const_data_ptr<int64_t>(), best.const_data_ptr<int64_t>() + best.numel());
  }
  return out;
}

Result<nlohmann::ordered_json> evaluate_finetune(const LoadedModel& model, const EvaluationOptions& options, const FinetuneOptions& f, const std::vector<int64_t>& seeds) {
  const Millis start = monotonic_ms();
  TESSERA_TRY(check_memory(model, options));
  TESSERA_ASSIGN(const std::vector<Labelled> all, read_labelled(model, raw(options), seeds));
  const std::string label = all[0].main_label();
  std::map<std::string, Runs> scores;
  for (size_t s = 0; s < seeds.size(); ++s) {
    if (!all[s].targets.contains(label)) return fail(ErrorCode::kFixData, "label " + label + " has one class only under seed " + std::to_string(seeds[s]) + ": more images are needed");
    const FeaturePair& pixels = all[s].features.at("raw");
    const Target& target = all[s].targets.at(label);
    const auto score = [&](const LoadedModel& from) { return accuracy(finetuned(from, options.encoder, pixels.train_nd, target.train, target.classes, pixels.test_nd, f, seeds[s]), target.test); };
    scores["model"].values.push_back(score(model));
    log_info("{}: {:.1f} % after {} epochs, seed {}", label, 100 * scores["model"].values.back(), f.epochs, seeds[s]);
    if (!options.baselines) continue;
    scores["random_init"].values.push_back(score(random_model(model)));
    scores["pixels"].values.push_back(probe(pixel_features(pixels.train_nd), pixel_features(pixels.test_nd), target, seeds[s]).accuracy);
  }
  const nlohmann::ordered_json entry = entry_of(all[0].targets.at(label), int64_t(all[0].test_ids.size()), scores);
  nlohmann::ordered_json out = document_of("finetune", model, options, f, all[0], label, entry, start);
  if (seeds.size() > 1) out["settings"]["seeds"] = seeds;
  return out;
}

Result<nlohmann::ordered_json> evaluate_low_shot_finetune(const LoadedModel& model, const EvaluationOptions& o, const FinetuneOptions& f, const Shots& shots, int64_t draws) {
  const Millis start = monotonic_ms();
  TESSERA_TRY(check_memory(model, o));
  TESSERA_ASSIGN(const std::vector<Labelled> all, read_labelled(model, raw(o), {o.seed}));
  const Labelled& data = all[0];
  const std::string label = data.main_label();
  const Target& target = data.targets.at(label);
  const FeaturePair& pixels = data.features.at("raw");
  TESSERA_ASSIGN(const auto lists, draw_labels(label, target, shots, o.seed, draws));
  std::map<std::string, Runs> scores;
  for (size_t d = 0; d < lists.size(); ++d) {
    const at::Tensor train = pixels.train_nd.index_select(0, rows_tensor(lists[d]));
    const auto labels = pick(target.train, lists[d]);
    const auto score = [&](const LoadedModel& from) { return accuracy(finetuned(from, o.encoder, train, labels, target.classes, pixels.test_nd, f, o.seed + int64_t(d)), target.test); };
    scores["model"].values.push_back(score(model));
    log_info("{}: {:.1f} % with {} labels, draw {}", label, 100 * scores["model"].values.back(), lists[d].size(), d);
    if (o.baselines) scores["random_init"].values.push_back(score(random_model(model)));
  }
  nlohmann::ordered_json entry = entry_of(target, int64_t(data.test_ids.size()), scores);
  entry["labels_known"] = lists[0].size();
  nlohmann::ordered_json out = document_of("low-shot-finetune", model, o, f, data, label, entry, start);
  if (shots.per_class > 0) out["settings"]["per_class"] = shots.per_class;
  else out["settings"]["percent"] = shots.percent;
  out["settings"]["draws"] = draws;
  return out;
}

}  // namespace tessera::evaluate
