// `tessera evaluate linear`: the linear probe on frozen features, beside random initialisation and pixels.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "worker/evaluate/labelled.h"
#include "worker/evaluate/solver.h"

namespace tessera::evaluate {

struct ProbeScore {
  double accuracy = 0;
  double standard_error = 0;  // of the test set: sqrt(p (1 - p) / n)
  double l2 = 0;                   // L-BFGS
  double lr = 0, weight_decay = 0;  // SGD, LARS: the base rate
  std::vector<int64_t> predicted;  // class of each test image
};
// How a probe is fitted. epochs and batch: of SGD and LARS.
struct ProbeRecipe {
  Solver solver = Solver::kLbfgs;
  int64_t epochs = 50, batch = 256;
  int64_t knn = 0;  // beside it, the weighted vote of so many neighbours on the same features; 0: not
};
// L2 from {1e-4 ... 1e2} (L-BFGS), or base rate and weight decay from the published grid (SGD, LARS), chosen on 20 % of the training
// part; then fitted on all of it.
ProbeScore probe(const at::Tensor& train_nd, const at::Tensor& test_nd, const Target& target, int64_t seed, const ProbeRecipe& recipe = {});

struct LinearResult {
  nlohmann::ordered_json document;      // of INTERFACES.md
  std::vector<std::vector<int64_t>> confusion_cc;  // main label, first seed: [true class][predicted class]
};
// models: one, or several of the same recipe trained from different seeds; all see the same images. seeds: of the split and
// of the choice of L2. With several models or seeds, value is the mean over all, standard_error that of the mean,
// and test_standard_error the test set's own; with one of each, standard_error is the test set's. above_baselines: the
// model's value less a baseline's, with the paired error of that difference.
// Errors: those of read_labelled; kUsage when both are several (their errors are not of one kind).
Result<LinearResult> evaluate_linear(const std::vector<LoadedModel>& models, const EvaluationOptions& options, const std::vector<int64_t>& seeds, const ProbeRecipe& recipe = {});

// [true class][predicted class]; images of a class that training never saw (-1) are left out. Pure.
std::vector<std::vector<int64_t>> confusion(const std::vector<int64_t>& truth, const std::vector<int64_t>& predicted, int64_t classes);
// A square of cells, one row a true class, darker where more of the row's images are predicted; framed diagonal. Error: kIo.
Status draw_confusion(const std::vector<std::vector<int64_t>>& confusion_cc, const std::string& path);

}  // namespace tessera::evaluate
