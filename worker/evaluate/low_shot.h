// `tessera evaluate low-shot`: the linear probe on few labels, drawn several times.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "worker/evaluate/labelled.h"

namespace tessera::evaluate {

// How many labels are known: exactly one of the two is set.
struct Shots {
  int64_t per_class = 0;  // so many of every class
  double percent = 0;     // of the training images, at random over all classes
};

// Rows of `labels` whose labels are known in draw `draw`, ascending. Pure: depends on seed, draw and the rows alone.
// per_class: exactly that many of each of `classes`. Error: kFixData naming a class that has fewer.
Result<std::vector<int64_t>> draw_per_class(const std::vector<int64_t>& labels, int64_t classes, int64_t per_class, int64_t seed, int64_t draw);
// percent: round(percent / 100 x rows), at least two, without replacement.
std::vector<int64_t> draw_percent(int64_t rows, double percent, int64_t seed, int64_t draw);

// The rows of every draw. Errors: kFixData: those of draw_per_class, or a draw with one class only.
Result<std::vector<std::vector<int64_t>>> draw_labels(const std::string& label, const Target& target, const Shots& shots, int64_t seed, int64_t draws);

// Each draw fits the linear probe on its labels; L2 from the linear probe's grid by cross-validation over as many folds (at
// most 5) as the rarest drawn class has images, 1 when that is one. Features are standardised by all training images,
// which needs no labels. value: mean over draws, standard_error: of that mean.
// Errors: those of read_labelled; kFixData: fewer images than asked, or a draw with one class only.
Result<nlohmann::ordered_json> evaluate_low_shot(const LoadedModel& model, const EvaluationOptions& options, const Shots& shots, int64_t draws);

}  // namespace tessera::evaluate
