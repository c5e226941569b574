// Labelled features for the probes: which images train and which test, and what model, random weights and pixels say of
// them. Images are read in chunks and their pixels dropped, so memory holds features only.
#pragma once

#include <ATen/core/Tensor.h>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker/evaluate/features.h"
#include "worker/evaluate/samples.h"

namespace tessera::evaluate {

struct EvaluationOptions {
  std::string data, test_data;        // test_data empty: a fifth of data, by hash of seed and sample, is held out
  int64_t train_images = 4000, test_images = 2000;  // at most so many
  EncoderKind encoder = EncoderKind::kTarget;
  Pooling pooling = Pooling::kMean;   // of the model and of random weights
  std::vector<std::string> labels;    // empty: all that the data has
  int64_t seed = 0;
  int threads = 2;
  bool baselines = true;              // random_init and pixels too
  bool raw_pixels = false;            // the images themselves, as features "raw" [n, S, S, 3] uint8, and nothing else
};

// One label as classes: integers as they are, real numbers in 8 quantile bins of the training part.
struct Target {
  std::vector<int64_t> train, test;  // -1 in test: a class that training never saw
  int64_t classes = 0;
  std::vector<double> edges;  // of the bins, when binned
};
Target make_target(const std::vector<double>& train, const std::vector<double>& test);

struct FeaturePair {
  at::Tensor train_nd, test_nd;
};
struct Labelled {
  std::vector<SampleId> train_ids, test_ids;    // ascending
  std::map<std::string, FeaturePair> features;  // "model", and with baselines "random_init", "pixels"
  bool from_cache = false;                      // no image was read: all features and labels were kept from before
  std::map<std::string, Target> targets;        // every label that all images have with two classes or more
  std::string main_label() const { return targets.contains("class") ? "class" : targets.begin()->first; }
};

// The samples of a part: -1 all, 0 training, 1 held out; `wanted` at random by seed, ascending. Pure.
std::vector<SampleId> choose_samples(int64_t count, int64_t wanted, int64_t seed, int part);

// One entry per seed; each splits anew, every image is read and encoded once for all.
// Errors: those of the loader; kFixData: fewer than 10 images in a part, no label, one class only, features not finite.
Result<std::vector<Labelled>> read_labelled(const LoadedModel& model, const EvaluationOptions& options, const std::vector<int64_t>& seeds);

// Calls use(samples) for chunks of ids in order; never more than a chunk of pixels in memory.
Status read_in_chunks(SampleSource& source, const std::vector<SampleId>& ids, int size, const std::function<Status(const Samples&)>& use);

// Settings that every evaluation reports.
nlohmann::ordered_json common_settings(const std::string& protocol, const LoadedModel& model, const EvaluationOptions& options, const Labelled& data);

// A long column of indices, for index_select.
at::Tensor rows_tensor(const std::vector<int64_t>& rows);
std::vector<int64_t> pick(const std::vector<int64_t>& list, const std::vector<int64_t>& rows);

// Mean, and the standard error of the mean: sd / sqrt(n), 0 for one value.
struct MeanError {
  double mean = 0, standard_error = 0;
};
MeanError mean_error(const std::vector<double>& values);

}  // namespace tessera::evaluate
