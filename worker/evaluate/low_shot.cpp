#include "worker/evaluate/low_shot.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "common/clock.h"
#include "common/log.h"
#include "common/philox.h"
#include "worker/evaluate/logistic.h"

namespace tessera::evaluate {
namespace {

constexpr double kGrid[] = {1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4};
constexpr uint32_t kDrawStream = 200, kFoldStream = 300;
constexpr int64_t kFolds = 5;

void shuffle_first(std::vector<int64_t>& rows, int64_t count, PhiloxStream& random) {
  for (size_t i = 0; i + 1 < rows.size() && int64_t(i) < count; ++i) std::swap(rows[i], rows[i + random.next_below(uint32_t(rows.size() - i))]);
}

// Fold of each row: the images of a class are dealt round, so that every fold has some of each.
std::vector<int64_t> deal_folds(const std::vector<int64_t>& labels, int64_t folds, int64_t seed, int64_t draw) {
  std::vector<int64_t> order(labels.size()), out(labels.size());
  std::iota(order.begin(), order.end(), 0);
  PhiloxStream random(uint64_t(seed), Purpose::kProbe, uint64_t(draw), kFoldStream);
  shuffle_first(order, int64_t(order.size()), random);
  std::map<int64_t, int64_t> dealt;
  for (const int64_t row : order) out[size_t(row)] = dealt[labels[size_t(row)]]++ % folds;
  return out;
}

double choose_l2(const at::Tensor& features_nd, const std::vector<int64_t>& labels, int64_t classes, int64_t seed, int64_t draw) {
  std::map<int64_t, int64_t> sizes;
  for (const int64_t label : labels) ++sizes[label];
  int64_t folds = kFolds;
  for (const auto& [label, size] : sizes) folds = std::min(folds, size);
  if (folds < 2) return 1;
  const auto fold_of = deal_folds(labels, folds, seed, draw);
  std::vector<double> score(std::size(kGrid), 0.0);
  for (int64_t fold = 0; fold < folds; ++fold) {
    std::vector<int64_t> fit, held;
    for (size_t i = 0; i < labels.size(); ++i) (fold_of[i] == fold ? held : fit).push_back(int64_t(i));
    const at::Tensor fit_nd = features_nd.index_select(0, rows_tensor(fit)), held_nd = features_nd.index_select(0, rows_tensor(held));
    LogisticModel model;
    for (size_t g = 0; g < std::size(kGrid); ++g) {
      model = fit_logistic(fit_nd, pick(labels, fit), classes, {kGrid[g], 200, 2e-4}, model.weight_dc.defined() ? &model : nullptr);
      score[g] += accuracy(predict(model, held_nd), pick(labels, held)) * double(held.size());
    }
  }
  return kGrid[size_t(std::max_element(score.begin(), score.end()) - score.begin())];  // the strongest of equals
}

std::vector<double> accuracy_of_draws(const FeaturePair& pair, const Target& target, const std::vector<std::vector<int64_t>>& draws, int64_t seed) {
  const Standardizer scale = Standardizer::of(pair.train_nd);
  const at::Tensor train = scale.apply(pair.train_nd), test = scale.apply(pair.test_nd);
  std::vector<double> out;
  for (size_t draw = 0; draw < draws.size(); ++draw) {
    const at::Tensor some = train.index_select(0, rows_tensor(draws[draw]));
    const auto labels = pick(target.train, draws[draw]);
    const double l2 = choose_l2(some, labels, target.classes, seed, int64_t(draw));
    out.push_back(accuracy(predict(fit_logistic(some, labels, target.classes, {l2, 200, 2e-4}), test), target.test));
  }
  return out;
}

nlohmann::ordered_json low_shot_entry(const Labelled& data, const std::string& label, const std::vector<std::vector<int64_t>>& draws, int64_t seed) {
  const Target& target = data.targets.at(label);
  const auto values = accuracy_of_draws(data.features.at("model"), target, draws, seed);
  const MeanError score = mean_error(values);
  nlohmann::ordered_json out{{"metric", "accuracy"}, {"value", score.mean}, {"standard_error", score.standard_error}, {"classes", target.classes},
                             {"test_standard_error", std::sqrt(score.mean * (1 - score.mean) / double(target.test.size()))}, {"values", values}, {"labels_known", draws[0].size()}};
  if (!target.edges.empty()) out["bin_edges"] = target.edges;
  for (const std::string name : {"random_init", "pixels"}) {
    if (!data.features.contains(name)) continue;
    const MeanError baseline = mean_error(accuracy_of_draws(data.features.at(name), target, draws, seed));
    out["baselines"][name] = baseline.mean;
    out["baseline_standard_errors"][name] = baseline.standard_error;
  }
  return out;
}

}  // namespace

Result<std::vector<int64_t>> draw_per_class(const std::vector<int64_t>& labels, int64_t classes, int64_t per_class, int64_t seed, int64_t draw) {
  std::vector<std::vector<int64_t>> by_class(static_cast<size_t>(classes));
  for (size_t i = 0; i < labels.size(); ++i) by_class[size_t(labels[i])].push_back(int64_t(i));
  std::vector<int64_t> out;
  PhiloxStream random(uint64_t(seed), Purpose::kProbe, uint64_t(draw), kDrawStream);
  for (size_t c = 0; c < by_class.size(); ++c) {
    auto& rows = by_class[c];
    if (int64_t(rows.size()) < per_class)
      return fail(ErrorCode::kFixData, "class " + std::to_string(c) + " has " + std::to_string(rows.size()) + " of the " + std::to_string(labels.size()) + " training images, fewer than --per-class " +
                                           std::to_string(per_class) + "; lower it or raise --train-images");
    shuffle_first(rows, per_class, random);
    out.insert(out.end(), rows.begin(), rows.begin() + per_class);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<int64_t> draw_percent(int64_t rows, double percent, int64_t seed, int64_t draw) {
  std::vector<int64_t> all(static_cast<size_t>(rows));
  std::iota(all.begin(), all.end(), 0);
  const int64_t wanted = std::min(rows, std::max<int64_t>(2, std::llround(percent / 100.0 * double(rows))));
  PhiloxStream random(uint64_t(seed), Purpose::kProbe, uint64_t(draw), kDrawStream + 1);
  shuffle_first(all, wanted, random);
  all.resize(size_t(wanted));
  std::sort(all.begin(), all.end());
  return all;
}

Result<std::vector<std::vector<int64_t>>> draw_labels(const std::string& label, const Target& target, const Shots& shots, int64_t seed, int64_t draws) {
  std::vector<std::vector<int64_t>> out;
  for (int64_t draw = 0; draw < draws; ++draw) {
    std::vector<int64_t> rows = draw_percent(int64_t(target.train.size()), shots.percent, seed, draw);
    if (shots.per_class > 0) {
      TESSERA_ASSIGN(rows, draw_per_class(target.train, target.classes, shots.per_class, seed, draw));
    }
    const auto labels = pick(target.train, rows);
    if (std::set<int64_t>(labels.begin(), labels.end()).size() < 2)
      return fail(ErrorCode::kFixData, "a draw of " + std::to_string(rows.size()) + " images holds one class of " + label + " only; raise --percent or --train-images, or use --per-class");
    out.push_back(std::move(rows));
  }
  return out;
}

Result<nlohmann::ordered_json> evaluate_low_shot(const LoadedModel& model, const EvaluationOptions& o, const Shots& shots, int64_t draws) {
  const Millis start = monotonic_ms();
  TESSERA_ASSIGN(const std::vector<Labelled> all, read_labelled(model, o, {o.seed}));
  const Labelled& data = all[0];
  nlohmann::ordered_json probes = nlohmann::ordered_json::object();
  for (const auto& [label, target] : data.targets) {
    auto rows = draw_labels(label, target, shots, o.seed, draws);
    if (!rows && label != data.main_label() && o.labels.empty()) continue;  // a rare value of a side label ends only that label's probe
    if (!rows) return tl::unexpected(rows.error());
    probes[label] = low_shot_entry(data, label, *rows, o.seed);
    log_info("{}: {:.1f} % with {} labels", label, 100 * probes[label]["value"].get<double>(), (*rows)[0].size());
  }
  nlohmann::ordered_json out{{"schema", 1}};
  for (const auto& [key, value] : probes[data.main_label()].items()) out[key] = value;
  out["label"] = data.main_label();
  out["probes"] = probes;
  out["settings"] = common_settings("low-shot", model, o, data);
  if (shots.per_class > 0) out["settings"]["per_class"] = shots.per_class;
  else out["settings"]["percent"] = shots.percent;
  out["settings"]["draws"] = draws;
  out["settings"]["seconds"] = double(monotonic_ms() - start) / 1000.0;
  return out;
}

}  // namespace tessera::evaluate
