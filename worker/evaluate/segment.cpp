#include "worker/evaluate/segment.h"

#include <ATen/ATen.h>
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "common/clock.h"
#include "common/log.h"
#include "worker/evaluate/linear.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kMostTrain = 1000, kMostTest = 500, kFewest = 10;

struct Patches {  // of one part, image by image
  std::map<std::string, at::Tensor> features_rd;
  std::vector<int64_t> labels;
};

std::string stem(const std::string& key) { return std::filesystem::path(key).replace_extension().string(); }

Status same_keys(const Samples& images, const Samples& masks, const std::string& mask_path) {
  for (size_t i = 0; i < images.keys.size(); ++i)
    if (stem(images.keys[i]) != stem(masks.keys[i]))
      return fail(ErrorCode::kFixData, "the masks in " + mask_path + " are not those of the images: image " + images.keys[i] + " meets mask " + masks.keys[i] + "; give each the name of its image");
  return {};
}

Result<Patches> read_patches(const LoadedModel& model, const EvaluationOptions& o, SampleSource& images, SampleSource& masks, const std::string& mask_path, const std::vector<SampleId>& ids) {
  Patches out;
  const LoadedModel random = o.baselines ? random_model(model) : LoadedModel{};
  const FrozenEncoder encoder(model, o.encoder);
  std::optional<FrozenEncoder> random_encoder;
  if (o.baselines) random_encoder.emplace(random, o.encoder);
  std::map<std::string, std::vector<at::Tensor>> parts;
  const auto rows = [](const at::Tensor& nkd) { return nkd.reshape({-1, nkd.size(2)}); };
  TESSERA_TRY(read_in_chunks(images, ids, int(model.function.model.image_size), [&](const Samples& some) -> Status {
    TESSERA_ASSIGN(const Samples own, masks.read(some.ids, int(some.pixels.size(1))));
    TESSERA_TRY(same_keys(some, own, mask_path));
    const int64_t grid = encoder.grid(some.pixels.size(1));
    const auto labels = patch_labels(own.pixels, grid);
    out.labels.insert(out.labels.end(), labels.begin(), labels.end());
    parts["model"].push_back(rows(encoder.features(some.pixels, Pooling::kPatches)));
    if (!random_encoder) return {};
    parts["random_init"].push_back(rows(random_encoder->features(some.pixels, Pooling::kPatches)));
    parts["pixels"].push_back(rows(pixel_patches(some.pixels, grid)));
    return {};
  }));
  for (auto& [name, list] : parts) out.features_rd[name] = at::cat(list);
  TESSERA_TRY(check_finite(out.features_rd["model"], model.checkpoint));
  return out;
}

// Share of right patches with its standard error over images.
MeanError by_image(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth, int64_t images) {
  std::vector<double> shares(size_t(images), 0.0);
  const size_t each = truth.size() / size_t(images);
  for (size_t i = 0; i < truth.size(); ++i) shares[i / each] += predicted[i] == truth[i] ? 1.0 / double(each) : 0;
  return mean_error(shares);
}

Result<Target> target_of(const Patches& train, const Patches& test, const std::string& masks) {
  Target target{train.labels, test.labels, 2, {}};
  const int64_t objects = std::count(train.labels.begin(), train.labels.end(), 1);
  if (objects > 0 && objects < int64_t(train.labels.size())) return target;
  return fail(ErrorCode::kFixData, "the masks in " + masks + " show one class only: " + (objects == 0 ? "no patch" : "every patch") + " of the training images is mostly bright");
}

}  // namespace

std::vector<int64_t> patch_labels(const at::Tensor& masks, int64_t grid) {
  const int64_t n = masks.size(0), patch = masks.size(1) / grid;
  const at::Tensor mean = masks.to(at::kFloat).view({n, grid, patch, grid, patch, 3}).mean(at::IntArrayRef{2, 4, 5}).contiguous();
  std::vector<int64_t> out;
  for (int64_t i = 0; i < mean.numel(); ++i) out.push_back(mean.const_data_ptr<float>()[i] > 127.5f ? 1 : 0);
  return out;
}

double mean_iou(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth) {
  double sum = 0;
  for (const int64_t c : {0, 1}) {
    int64_t both = 0, either = 0;
    for (size_t i = 0; i < truth.size(); ++i) both += predicted[i] == c && truth[i] == c, either += predicted[i] == c || truth[i] == c;
    sum += either == 0 ? 1 : double(both) / double(either);
  }
  return sum / 2;
}

Result<nlohmann::ordered_json> evaluate_segment(const LoadedModel& model, const EvaluationOptions& o, const std::string& mask_path) {
  const Millis start = monotonic_ms();
  TESSERA_ASSIGN(const auto images, SampleSource::open(o.data, o.threads));
  TESSERA_ASSIGN(const auto masks, SampleSource::open(mask_path, o.threads));
  const int64_t count = images->info().sample_count, mask_count = masks->info().sample_count;
  if (count != mask_count) return fail(ErrorCode::kFixData, o.data + " has " + std::to_string(count) + " images and " + mask_path + " " + std::to_string(mask_count) + " masks: one for each image is needed");
  Labelled data;
  data.train_ids = choose_samples(count, std::min(o.train_images, kMostTrain), o.seed, 0), data.test_ids = choose_samples(count, std::min(o.test_images, kMostTest), o.seed, 1);
  if (int64_t(std::min(data.train_ids.size(), data.test_ids.size())) < kFewest)
    return fail(ErrorCode::kFixData, "a probe needs at least 10 images to train on and 10 to test on; " + o.data + " gives " + std::to_string(data.train_ids.size()) + " and " + std::to_string(data.test_ids.size()));
  TESSERA_ASSIGN(const Patches train, read_patches(model, o, *images, *masks, mask_path, data.train_ids));
  TESSERA_ASSIGN(const Patches test, read_patches(model, o, *images, *masks, mask_path, data.test_ids));
  TESSERA_ASSIGN(const Target target, target_of(train, test, mask_path));
  log_info("{} patches to train on, {} to test on", train.labels.size(), test.labels.size());
  const auto tested = int64_t(data.test_ids.size());
  const auto score = [&](const std::string& name) { return probe(train.features_rd.at(name), test.features_rd.at(name), target, o.seed); };
  const ProbeScore own = score("model");
  const MeanError value = by_image(own.predicted, test.labels, tested);
  nlohmann::ordered_json entry{{"metric", "accuracy"}, {"value", value.mean}, {"standard_error", value.standard_error}, {"mean_iou", mean_iou(own.predicted, test.labels)}, {"classes", 2}, {"l2", own.l2}};
  const int64_t major = 2 * std::count(train.labels.begin(), train.labels.end(), 1) > int64_t(train.labels.size()) ? 1 : 0;
  entry["baselines"]["majority"] = by_image(std::vector<int64_t>(test.labels.size(), major), test.labels, tested).mean;
  for (const std::string name : {"random_init", "pixels"}) {
    if (!o.baselines) continue;
    const ProbeScore other = score(name);
    const MeanError m = by_image(other.predicted, test.labels, tested);
    entry["baselines"][name] = m.mean, entry["baseline_standard_errors"][name] = m.standard_error, entry["baseline_mean_iou"][name] = mean_iou(other.predicted, test.labels);
  }
  nlohmann::ordered_json out{{"schema", 1}};
  for (const auto& [key, item] : entry.items()) out[key] = item;
  out["label"] = "object", out["probes"] = {{"object", entry}};
  EvaluationOptions settings = o;
  settings.pooling = Pooling::kPatches;
  out["settings"] = common_settings("segment", model, settings, data);
  out["settings"]["masks"] = mask_path;
  out["settings"]["seconds"] = double(monotonic_ms() - start) / 1000.0;
  return out;
}

}  // namespace tessera::evaluate
