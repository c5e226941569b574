#include "worker/evaluate/linear.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include "common/clock.h"
#include "common/log.h"
#include "common/philox.h"
#include "worker/evaluate/knn.h"
#include "worker/evaluate/monitors.h"
#include "worker/evaluate/png_sheet.h"

namespace tessera::evaluate {
namespace {

constexpr double kGrid[] = {1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4};

// The scores of one kind of features ("model", "pixels") under one label, over the seeds.
struct Scores {
  std::vector<double> values, test_errors;
  ProbeScore first;
};

Scores score_all(const std::vector<Labelled>& data, const std::string& features, const std::string& label, const std::vector<int64_t>& seeds,
                 const ProbeRecipe& recipe) {
  Scores out;
  for (size_t s = 0; s < data.size(); ++s) {
    const FeaturePair& pair = data[s].features.at(features);
    ProbeScore score = probe(pair.train_nd, pair.test_nd, data[s].targets.at(label), seeds[s], recipe);
    out.values.push_back(score.accuracy), out.test_errors.push_back(score.standard_error);
    if (s == 0) out.first = std::move(score);
  }
  return out;
}

double mean(const std::vector<double>& values) { return mean_error(values).mean; }
double error_of(const Scores& scores) { return scores.values.size() > 1 ? mean_error(scores.values).standard_error : scores.test_errors[0]; }

// How far the model is above a baseline. Both answered the same images, so the error is that of the difference, image by
// image; over several seeds or models, that of the mean of their differences.
nlohmann::ordered_json above(const Scores& model, const Scores& baseline, const Target& target) {
  std::vector<double> differences;
  if (model.values.size() > 1)
    for (size_t s = 0; s < model.values.size(); ++s) differences.push_back(model.values[s] - baseline.values[s]);
  else
    for (size_t i = 0; i < target.test.size(); ++i) differences.push_back(double(model.first.predicted[i] == target.test[i]) - double(baseline.first.predicted[i] == target.test[i]));
  const MeanError difference = mean_error(differences);
  return {{"value", difference.mean}, {"standard_error", difference.standard_error}};
}

// The first seed's weighted vote, of as many neighbours as there are.
nlohmann::ordered_json knn_entry(const FeaturePair& pair, const Target& target, int64_t k) {
  k = std::min(k, pair.train_nd.size(0));
  const double p = accuracy(vote(nearest(pair.test_nd, pair.train_nd, k), target.train, target.classes, k, Vote::kWeighted), target.test);
  return {{"k", k}, {"value", p}, {"standard_error", std::sqrt(p * (1 - p) / double(target.test.size()))}};
}

nlohmann::ordered_json entry_of(const std::vector<Labelled>& data, const std::string& label, const std::vector<int64_t>& seeds, const ProbeRecipe& recipe, std::vector<int64_t>* predicted) {
  const Scores scores = score_all(data, "model", label, seeds, recipe);
  *predicted = scores.first.predicted;
  const Target& target = data[0].targets.at(label);
  nlohmann::ordered_json out{{"metric", "accuracy"}, {"value", mean(scores.values)}, {"standard_error", error_of(scores)}, {"classes", target.classes}};
  if (recipe.solver == Solver::kLbfgs) out["l2"] = scores.first.l2;
  else out["lr"] = scores.first.lr, out["weight_decay"] = scores.first.weight_decay;
  if (seeds.size() > 1) {
    out["test_standard_error"] = mean(scores.test_errors);
    out["values"] = scores.values;
  }
  if (recipe.knn > 0) out["knn"] = knn_entry(data[0].features.at("model"), target, recipe.knn);
  if (!target.edges.empty()) out["bin_edges"] = target.edges;
  if (!data[0].features.contains("random_init")) return out;
  const Scores random = score_all(data, "random_init", label, seeds, recipe), pixels = score_all(data, "pixels", label, seeds, recipe);
  out["baselines"] = {{"random_init", mean(random.values)}, {"pixels", mean(pixels.values)}};
  out["baseline_standard_errors"] = {{"random_init", error_of(random)}, {"pixels", error_of(pixels)}};
  out["above_baselines"] = {{"random_init", above(scores, random, target)}, {"pixels", above(scores, pixels, target)}};
  return out;
}

// The training part in two: four fifths to fit, a fifth to choose by. Standardised.
struct Split {
  at::Tensor fit_nd, held_nd;
  std::vector<int64_t> fit_labels, held_labels;
  int64_t classes;
};

LogisticModel fit_by_l2(const Split& split, const at::Tensor& train_nd, const std::vector<int64_t>& labels, ProbeScore& out) {
  double best = -1;
  LogisticModel previous;
  for (const double l2 : kGrid) {  // from strong to weak: each starts where the last one ended
    previous = fit_logistic(split.fit_nd, split.fit_labels, split.classes, {l2, 200, 2e-4}, previous.weight_dc.defined() ? &previous : nullptr);
    const double score = accuracy(predict(previous, split.held_nd), split.held_labels);
    if (score > best) best = score, out.l2 = l2;
  }
  return fit_logistic(train_nd, labels, split.classes, {out.l2, 200, 2e-4});
}

LogisticModel fit_by_rate(const Split& split, const at::Tensor& train_nd, const std::vector<int64_t>& labels, int64_t seed, const ProbeRecipe& recipe, ProbeScore& out) {
  double best = -1;
  const auto options = [&](double lr, double decay) {
    return SgdOptions{recipe.solver, scaled_rate(recipe.solver, lr, std::min(recipe.batch, split.fit_nd.size(0))), decay, recipe.epochs, recipe.batch, seed};
  };
  for (const double lr : kBaseRates)
    for (const double decay : kSgdDecays) {
      const double score = accuracy(predict(fit_sgd(split.fit_nd, split.fit_labels, split.classes, options(lr, decay)), split.held_nd), split.held_labels);
      if (score > best) best = score, out.lr = lr, out.weight_decay = decay;
    }
  return fit_sgd(train_nd, labels, split.classes, options(out.lr, out.weight_decay));
}

}  // namespace

ProbeScore probe(const at::Tensor& train_nd, const at::Tensor& test_nd, const Target& target, int64_t seed, const ProbeRecipe& recipe) {
  std::vector<int64_t> fit_rows, choose_rows;
  for (int64_t i = 0; i < train_nd.size(0); ++i)
    (PhiloxStream(uint64_t(seed), Purpose::kProbe, uint64_t(i), 100).next_below(5) == 0 ? choose_rows : fit_rows).push_back(i);
  const at::Tensor fit_raw = train_nd.index_select(0, rows_tensor(fit_rows));
  const Standardizer fit_scale = Standardizer::of(fit_raw), scale = Standardizer::of(train_nd);
  const Split split{fit_scale.apply(fit_raw), fit_scale.apply(train_nd.index_select(0, rows_tensor(choose_rows))), pick(target.train, fit_rows), pick(target.train, choose_rows), target.classes};
  ProbeScore out;
  const LogisticModel model = recipe.solver == Solver::kLbfgs ? fit_by_l2(split, scale.apply(train_nd), target.train, out) : fit_by_rate(split, scale.apply(train_nd), target.train, seed, recipe, out);
  out.predicted = predict(model, scale.apply(test_nd));
  out.accuracy = accuracy(out.predicted, target.test);
  out.standard_error = std::sqrt(out.accuracy * (1 - out.accuracy) / double(test_nd.size(0)));
  return out;
}

Result<LinearResult> evaluate_linear(const std::vector<LoadedModel>& models, const EvaluationOptions& o, const std::vector<int64_t>& probe_seeds, const ProbeRecipe& recipe) {
  const Millis start = monotonic_ms();
  if (models.size() > 1 && probe_seeds.size() > 1) return fail(ErrorCode::kUsage, "--also and --seeds together would mix two kinds of error; give one of them");
  std::vector<Labelled> data;
  for (const LoadedModel& model : models) {
    TESSERA_ASSIGN(std::vector<Labelled> some, read_labelled(model, o, probe_seeds));
    std::move(some.begin(), some.end(), std::back_inserter(data));
  }
  const std::vector<int64_t> seeds = models.size() > 1 ? std::vector<int64_t>(models.size(), probe_seeds[0]) : probe_seeds;
  const std::string main_label = data[0].main_label();
  LinearResult out;
  nlohmann::ordered_json probes = nlohmann::ordered_json::object();
  for (const auto& [label, target] : data[0].targets) {
    if (std::any_of(data.begin(), data.end(), [&](const Labelled& one) { return !one.targets.contains(label); })) continue;
    std::vector<int64_t> predicted;
    probes[label] = entry_of(data, label, seeds, recipe, &predicted);
    log_info("{}: {:.1f} %", label, 100 * probes[label]["value"].get<double>());
    if (label == main_label) out.confusion_cc = confusion(target.test, predicted, target.classes);
  }
  if (!probes.contains(main_label)) return fail(ErrorCode::kFixData, "label " + main_label + " has one class only under some of the seeds: more images are needed");
  out.document = {{"schema", 1}};
  for (const auto& [key, value] : probes[main_label].items()) out.document[key] = value;
  out.document["label"] = main_label;
  out.document["probes"] = probes;
  out.document["monitors"] = to_json(spread(data[0].features.at("model").train_nd));
  out.document["settings"] = common_settings("linear", models[0], o, data[0]);
  out.document["settings"]["solver"] = recipe.solver == Solver::kLbfgs ? "lbfgs" : recipe.solver == Solver::kSgd ? "sgd" : "lars";
  if (recipe.solver != Solver::kLbfgs) out.document["settings"]["epochs"] = recipe.epochs, out.document["settings"]["batch"] = recipe.batch;
  for (size_t m = 1; m < models.size(); ++m) out.document["settings"]["also"].push_back({{"model", models[m].checkpoint}, {"step", models[m].state.step}, {"checkpoint_digest", to_hex(models[m].state.digest())}});
  if (probe_seeds.size() > 1) out.document["settings"]["seeds"] = probe_seeds;
  out.document["settings"]["seconds"] = double(monotonic_ms() - start) / 1000.0;
  return out;
}

std::vector<std::vector<int64_t>> confusion(const std::vector<int64_t>& truth, const std::vector<int64_t>& predicted, int64_t classes) {
  std::vector<std::vector<int64_t>> out(size_t(classes), std::vector<int64_t>(size_t(classes), 0));
  for (size_t i = 0; i < truth.size(); ++i)
    if (truth[i] >= 0) ++out[size_t(truth[i])][size_t(predicted[i])];
  return out;
}

Status draw_confusion(const std::vector<std::vector<int64_t>>& confusion_cc, const std::string& path) {
  constexpr Color kPaper{250, 249, 246}, kInk{23, 64, 110}, kDiagonal{222, 82, 60};
  const int classes = int(confusion_cc.size()), cell = std::clamp(480 / std::max(1, classes), 3, 48), gap = cell >= 12 ? 1 : 0, edge = 8;
  Canvas canvas(2 * edge + classes * cell, 2 * edge + classes * cell, kPaper);
  for (int truth = 0; truth < classes; ++truth) {
    const auto& row = confusion_cc[size_t(truth)];
    const double total = double(std::max<int64_t>(1, std::accumulate(row.begin(), row.end(), int64_t{0})));
    for (int guess = 0; guess < classes; ++guess) {
      const int left = edge + guess * cell, top = edge + truth * cell;
      canvas.shade(left, top, cell - gap, cell - gap, kInk, 0.04 + 0.96 * double(row[size_t(guess)]) / total);
      if (guess == truth && cell >= 6) canvas.frame(left, top, cell - gap, cell - gap, kDiagonal, 1);
    }
  }
  return canvas.write(path);
}

}  // namespace tessera::evaluate
