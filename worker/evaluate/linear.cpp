#include "worker/evaluate/linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "common/clock.h"
#include "common/log.h"
#include "common/philox.h"
#include "worker/model/engine.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kBins = 8, kFeatureBatch = 64;
constexpr double kGrid[] = {1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4};

// Which samples are held out depends on the sample alone: a fifth by hash.
bool held_out(SampleId id, int64_t seed) { return PhiloxStream(uint64_t(seed), Purpose::kProbe, uint64_t(id), 0).next_below(5) == 0; }

std::vector<SampleId> choose(int64_t count, int64_t wanted, int64_t seed, int part) {  // part -1: all, 0: train, 1: held out
  std::vector<SampleId> all;
  for (SampleId id = 0; id < count; ++id)
    if (part < 0 || held_out(id, seed) == (part == 1)) all.push_back(id);
  PhiloxStream random(uint64_t(seed), Purpose::kProbe, uint64_t(count), uint32_t(2 + part));
  for (size_t i = 0; i + 1 < all.size() && int64_t(i) < wanted; ++i) std::swap(all[i], all[i + random.next_below(uint32_t(all.size() - i))]);
  if (int64_t(all.size()) > wanted) all.resize(size_t(wanted));
  std::sort(all.begin(), all.end());
  return all;
}

std::vector<int64_t> pick(const std::vector<int64_t>& list, const std::vector<int64_t>& rows) {
  std::vector<int64_t> out;
  for (const int64_t row : rows) out.push_back(list[size_t(row)]);
  return out;
}

at::Tensor rows_tensor(const std::vector<int64_t>& rows) {
  at::Tensor out = at::empty({int64_t(rows.size())}, at::kLong);
  std::copy(rows.begin(), rows.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

// RGB averaged over square blocks to at most kPixelSide a side: a baseline of at most 3,072 numbers an image, so that its
// probe costs seconds.
constexpr int64_t kPixelSide = 32;
at::Tensor pixel_features(const at::Tensor& pixels) {
  const int64_t n = pixels.size(0), size = pixels.size(1);
  int64_t block = 1;
  while (size / block > kPixelSide || size % block != 0) ++block;
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < n; first += 256) {
    const at::Tensor some = pixels.narrow(0, first, std::min<int64_t>(256, n - first)).to(at::kFloat);
    parts.push_back(some.view({-1, size / block, block, size / block, block, 3}).mean(at::IntArrayRef{2, 4}).reshape({some.size(0), -1}).div_(255.0));
  }
  return at::cat(parts);
}

nlohmann::ordered_json score_json(const ProbeScore& score, const Target& target) {
  nlohmann::ordered_json out{{"metric", "accuracy"}, {"value", score.accuracy}, {"standard_error", score.standard_error}, {"classes", target.classes}, {"l2", score.l2}};
  if (!target.edges.empty()) out["bin_edges"] = target.edges;
  return out;
}

}  // namespace

at::Tensor pooled_features(const LoadedModel& model, const at::Tensor& pixels, bool context_encoder) {
  at::NoGradGuard no_grad;
  auto engine = model::Engine::make(model.function, "cpu");
  TESSERA_CHECK(engine.has_value(), "the CPU engine exists");
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < pixels.size(0); first += kFeatureBatch) {
    const at::Tensor batch = pixels.narrow(0, first, std::min(kFeatureBatch, pixels.size(0) - first)).contiguous();
    parts.push_back((*engine)->features(model.state, batch, context_encoder).mean(1));
  }
  return at::cat(parts);
}

Target make_target(const std::vector<double>& train, const std::vector<double>& test) {
  Target out;
  std::set<double> values(train.begin(), train.end());
  const bool whole = std::all_of(train.begin(), train.end(), [](double v) { return v == std::floor(v); });
  const auto assign = [&](const std::vector<double>& from, std::vector<int64_t>& to, const auto& rule) {
    for (const double value : from) to.push_back(rule(value));
  };
  if (whole && values.size() <= 1000) {
    std::map<double, int64_t> index;
    for (const double value : values) index.emplace(value, int64_t(index.size()));
    const auto rule = [&](double v) { return index.contains(v) ? index.at(v) : int64_t{-1}; };  // never seen in training: always wrong
    assign(train, out.train, rule);
    assign(test, out.test, rule);
    out.classes = int64_t(index.size());
  } else {
    std::vector<double> sorted = train;
    std::sort(sorted.begin(), sorted.end());
    for (int64_t i = 1; i < kBins; ++i) out.edges.push_back(sorted[size_t(int64_t(sorted.size()) * i / kBins)]);
    const auto rule = [&](double v) { return int64_t(std::upper_bound(out.edges.begin(), out.edges.end(), v) - out.edges.begin()); };
    assign(train, out.train, rule);
    assign(test, out.test, rule);
    out.classes = kBins;
  }
  return out;
}

ProbeScore probe(const at::Tensor& train_nd, const at::Tensor& test_nd, const Target& target, int64_t seed) {
  std::vector<int64_t> fit_rows, choose_rows;
  for (int64_t i = 0; i < train_nd.size(0); ++i)
    (PhiloxStream(uint64_t(seed), Purpose::kProbe, uint64_t(i), 100).next_below(5) == 0 ? choose_rows : fit_rows).push_back(i);
  const at::Tensor fit_raw = train_nd.index_select(0, rows_tensor(fit_rows));
  const Standardizer fit_scale = Standardizer::of(fit_raw);
  const at::Tensor fit = fit_scale.apply(fit_raw), held = fit_scale.apply(train_nd.index_select(0, rows_tensor(choose_rows)));
  const auto fit_labels = pick(target.train, fit_rows), held_labels = pick(target.train, choose_rows);
  double best = -1, best_l2 = 1;
  LogisticModel previous;
  for (const double l2 : kGrid) {  // from strong to weak: each starts where the last one ended
    previous = fit_logistic(fit, fit_labels, target.classes, {l2, 200, 2e-4}, previous.weight_dc.defined() ? &previous : nullptr);
    const double score = accuracy(predict(previous, held), held_labels);
    if (score > best) best = score, best_l2 = l2;
  }
  const Standardizer scale = Standardizer::of(train_nd);
  const LogisticModel final_model = fit_logistic(scale.apply(train_nd), target.train, target.classes, {best_l2, 200, 2e-4});
  const double p = accuracy(predict(final_model, scale.apply(test_nd)), target.test);
  return {p, std::sqrt(p * (1 - p) / double(test_nd.size(0))), best_l2};
}

Result<nlohmann::ordered_json> evaluate_linear(const LoadedModel& model, const LinearOptions& o) {
  const Millis start = monotonic_ms();
  const int size = int(model.function.model.image_size);
  TESSERA_ASSIGN(const auto source, SampleSource::open(o.data, o.threads));
  const bool own_test = !o.test_data.empty();
  const auto train_ids = choose(source->info().sample_count, o.train_images, o.seed, own_test ? -1 : 0);
  TESSERA_ASSIGN(const Samples train, source->read(train_ids, size));
  Samples test;
  if (own_test) {
    TESSERA_ASSIGN(const auto test_source, SampleSource::open(o.test_data, o.threads));
    TESSERA_ASSIGN(test, test_source->read(choose(test_source->info().sample_count, o.test_images, o.seed, -1), size));
  } else {
    TESSERA_ASSIGN(test, source->read(choose(source->info().sample_count, o.test_images, o.seed, 1), size));
  }
  if (train.ids.size() < 10 || test.ids.size() < 10)
    return fail(ErrorCode::kFixData, "a probe needs at least 10 images to train on and 10 to test on; " + o.data + " gives " + std::to_string(train.ids.size()) + " and " + std::to_string(test.ids.size()));
  std::map<std::string, Target> targets;
  for (const auto& [name, values] : train.labels) {
    if (!o.labels.empty() && std::find(o.labels.begin(), o.labels.end(), name) == o.labels.end()) continue;
    const auto in_test = test.labels.find(name);
    const auto known = [](const std::vector<double>& list) { return std::none_of(list.begin(), list.end(), [](double v) { return std::isnan(v); }); };
    if (in_test == test.labels.end() || !known(values) || !known(in_test->second)) continue;
    Target target = make_target(values, in_test->second);
    if (target.classes >= 2) targets[name] = std::move(target);
  }
  if (targets.empty())
    return fail(ErrorCode::kFixData, o.data + (o.labels.empty() ? " has no label with at least two classes" : " has no label " + o.labels[0] + " with at least two classes") +
                                         "; a linear probe needs class folders, .cls or .json members");
  const bool context = o.encoder == "context";
  std::map<std::string, std::pair<at::Tensor, at::Tensor>> features;
  log_info("features of {} + {} images", train.ids.size(), test.ids.size());
  features["model"] = {pooled_features(model, train.pixels, context), pooled_features(model, test.pixels, context)};
  if (o.baselines) {
    const LoadedModel random{"", "", model.function, model::State::initial(model.function)};
    features["random_init"] = {pooled_features(random, train.pixels, context), pooled_features(random, test.pixels, context)};
    features["pixels"] = {pixel_features(train.pixels), pixel_features(test.pixels)};
  }
  nlohmann::ordered_json probes = nlohmann::ordered_json::object();
  for (const auto& [label, target] : targets) {
    const ProbeScore score = probe(features["model"].first, features["model"].second, target, o.seed);
    nlohmann::ordered_json entry = score_json(score, target);
    if (o.baselines) {
      const ProbeScore random = probe(features["random_init"].first, features["random_init"].second, target, o.seed);
      const ProbeScore pixels = probe(features["pixels"].first, features["pixels"].second, target, o.seed);
      entry["baselines"] = {{"random_init", random.accuracy}, {"pixels", pixels.accuracy}};
      entry["baseline_standard_errors"] = {{"random_init", random.standard_error}, {"pixels", pixels.standard_error}};
    }
    log_info("{}: {:.1f} %", label, 100 * score.accuracy);
    probes[label] = entry;
  }
  const std::string main_label = targets.contains("class") ? "class" : targets.begin()->first;
  nlohmann::ordered_json out{{"schema", 1}};
  for (const auto& [key, value] : probes[main_label].items()) out[key] = value;
  out["label"] = main_label;
  out["probes"] = probes;
  out["settings"] = {{"protocol", "linear"}, {"encoder", o.encoder}, {"pixel_side", kPixelSide},        {"data", o.data},  {"test_data", o.test_data.empty() ? "held out of data" : o.test_data},
                     {"train_images", train.ids.size()}, {"test_images", test.ids.size()}, {"seed", o.seed}, {"step", model.state.step},
                     {"checkpoint_digest", to_hex(model.state.digest())}, {"seconds", double(monotonic_ms() - start) / 1000.0}};
  return out;
}

}  // namespace tessera::evaluate
