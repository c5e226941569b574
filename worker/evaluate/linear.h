// `tessera-model evaluate linear`: the linear probe on frozen features, beside random initialisation and pixels.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/evaluate/logistic.h"
#include "worker/evaluate/model_source.h"
#include "worker/evaluate/samples.h"

namespace tessera::evaluate {

struct LinearOptions {
  std::string data, test_data;   // test_data empty: held out of data
  int64_t train_images = 4000, test_images = 2000;
  std::string encoder = "target";  // target | context
  std::vector<std::string> labels;  // empty: all that the data has
  int64_t seed = 0;
  int threads = 2;
  bool baselines = true;
};

// Averaged final-norm tokens of an encoder for images of the model's size: [n, D].
at::Tensor pooled_features(const LoadedModel& model, const at::Tensor& pixels, bool context_encoder);

// One label as classes: integers as they are, real numbers in 8 quantile bins of the training part.
struct Target {
  std::vector<int64_t> train, test;
  int64_t classes = 0;
  std::vector<double> edges;  // of the bins, when binned
};
Target make_target(const std::vector<double>& train, const std::vector<double>& test);

struct ProbeScore {
  double accuracy = 0;
  double standard_error = 0;  // of the test set: sqrt(p (1 - p) / n)
  double l2 = 0;
};
// L2 from {1e-4 ... 1e2} on 20 % of the training part, then fitted on all of it.
ProbeScore probe(const at::Tensor& train_nd, const at::Tensor& test_nd, const Target& target, int64_t seed);

// The JSON document of INTERFACES.md.
Result<nlohmann::ordered_json> evaluate_linear(const LoadedModel& model, const LinearOptions& options);

}  // namespace tessera::evaluate
