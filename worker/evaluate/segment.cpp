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
  std::vector<int64_t> objects;     // 1 where an object is, else 0
  std::vector<double> image_label;  // of each image; empty without a label
};

struct Sources {
  std::unique_ptr<SampleSource> images, masks;
  std::string mask_path, label;  // label empty: objects alone
};

std::string stem(const std::string& key) { return std::filesystem::path(key).replace_extension().string(); }

Status same_keys(const Samples& images, const Samples& masks, const std::string& mask_path) {
  for (size_t i = 0; i < images.keys.size(); ++i)
    if (stem(images.keys[i]) != stem(masks.keys[i]))
      return fail(ErrorCode::kFixData, "the masks in " + mask_path + " are not those of the images: image " + images.keys[i] + " meets mask " + masks.keys[i] + "; give each the name of its image");
  return {};
}

Result<Sources> open_sources(const EvaluationOptions& o, const std::string& masks) {
  Sources out;
  out.mask_path = masks.empty() ? masks_of(o.data) : masks;
  if (out.mask_path.empty()) return fail(ErrorCode::kUsage, "segment needs --masks: pictures with the names of the images in " + o.data + ", bright where the object is (only scenes bring theirs along)");
  if (!o.test_data.empty()) return fail(ErrorCode::kUsage, "segment holds out a fifth of --data; it takes no --test-data");
  if (!o.labels.empty() && o.labels[0] != "object") out.label = o.labels[0];
  TESSERA_ASSIGN(out.images, SampleSource::open(o.data, o.threads));
  TESSERA_ASSIGN(out.masks, SampleSource::open(out.mask_path, o.threads));
  const int64_t count = out.images->info().sample_count, mask_count = out.masks->info().sample_count;
  if (count != mask_count) return fail(ErrorCode::kFixData, o.data + " has " + std::to_string(count) + " images and " + out.mask_path + " " + std::to_string(mask_count) + " masks: one for each image is needed");
  return out;
}

// The images' label, each of them a whole number.
Status take_labels(const Samples& some, const std::string& label, const std::string& data, std::vector<double>& out) {
  const auto found = some.labels.find(label);
  if (found == some.labels.end()) return fail(ErrorCode::kFixData, data + " has no label " + label + " that every image carries");
  for (const double value : found->second) {
    if (value != std::floor(value)) return fail(ErrorCode::kFixData, data + ": the label " + label + " is missing or not a whole number on some image; patches need classes");
    out.push_back(value);
  }
  return {};
}

Result<Patches> read_patches(const LoadedModel& model, const EvaluationOptions& o, const Sources& from, const std::vector<SampleId>& ids) {
  Patches out;
  const LoadedModel random = o.baselines ? random_model(model) : LoadedModel{};
  const FrozenEncoder encoder(model, o.encoder);
  std::optional<FrozenEncoder> random_encoder;
  if (o.baselines) random_encoder.emplace(random, o.encoder);
  std::map<std::string, std::vector<at::Tensor>> parts;
  const auto rows = [](const at::Tensor& nkd) { return nkd.reshape({-1, nkd.size(2)}); };
  TESSERA_TRY(read_in_chunks(*from.images, ids, int(model.function.model.image_size), [&](const Samples& some) -> Status {
    TESSERA_ASSIGN(const Samples own, from.masks->read(some.ids, int(some.pixels.size(1))));
    TESSERA_TRY(same_keys(some, own, from.mask_path));
    if (!from.label.empty()) TESSERA_TRY(take_labels(some, from.label, o.data, out.image_label));
    const int64_t grid = encoder.grid(some.pixels.size(1));
    const auto objects = patch_labels(own.pixels, grid);
    out.objects.insert(out.objects.end(), objects.begin(), objects.end());
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

// Classes of the patches: 0 ground, 1 + the place of the image's label among those of training (0 of them without a label).
std::vector<int64_t> patch_classes(const Patches& patches, const std::vector<double>& label_values) {
  std::vector<int64_t> out = patches.objects;
  if (patches.image_label.empty()) return out;
  const size_t each = out.size() / patches.image_label.size();
  for (size_t i = 0; i < out.size(); ++i) {
    const auto at = std::lower_bound(label_values.begin(), label_values.end(), patches.image_label[i / each]);
    const bool known = at != label_values.end() && *at == patches.image_label[i / each];
    if (out[i] == 1) out[i] = known ? 1 + (at - label_values.begin()) : -1;  // never seen in training: always wrong
  }
  return out;
}

Result<Target> target_of(const Patches& train, const Patches& test, const std::string& masks) {
  std::vector<double> values = train.image_label;
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  const int64_t objects = std::count(train.objects.begin(), train.objects.end(), 1);
  if (objects == 0 || objects == int64_t(train.objects.size()))
    return fail(ErrorCode::kFixData, "the masks in " + masks + " show one class only: " + (objects == 0 ? "no patch" : "every patch") + " of the training images is mostly bright");
  return Target{patch_classes(train, values), patch_classes(test, values), 1 + std::max<int64_t>(1, int64_t(values.size())), {}};
}

// Share of right patches with its standard error over images.
MeanError by_image(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth, int64_t images) {
  std::vector<double> shares(size_t(images), 0.0);
  const size_t each = truth.size() / size_t(images);
  for (size_t i = 0; i < truth.size(); ++i) shares[i / each] += predicted[i] == truth[i] ? 1.0 / double(each) : 0;
  return mean_error(shares);
}

struct BothScores {
  MeanError accuracy, iou;
};

BothScores both_scores(const std::vector<int64_t>& predicted, const Target& target, int64_t images) {
  return {by_image(predicted, target.test, images), mean_iou_by_image(predicted, target.test, target.classes, images)};
}

nlohmann::ordered_json json_of(const BothScores& s) {
  return {{"accuracy", s.accuracy.mean}, {"accuracy_standard_error", s.accuracy.standard_error}, {"mean_iou", s.iou.mean}, {"mean_iou_standard_error", s.iou.standard_error}};
}

int64_t most_frequent(const std::vector<int64_t>& classes) {
  std::map<int64_t, int64_t> counts;
  for (const int64_t c : classes) ++counts[c];
  return std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; })->first;
}

nlohmann::ordered_json entry_of(const Patches& train, const Patches& test, const Target& target, const EvaluationOptions& o, int64_t images) {
  const bool two = target.classes == 2;
  const auto main = [&](const BothScores& s) { return two ? s.accuracy : s.iou; };
  const ProbeScore own = probe(train.features_rd.at("model"), test.features_rd.at("model"), target, o.seed);
  const BothScores value = both_scores(own.predicted, target, images);
  nlohmann::ordered_json entry{{"metric", two ? "accuracy" : "mean_iou"}, {"value", main(value).mean}, {"standard_error", main(value).standard_error}, {"mean_iou", value.iou.mean}, {"classes", target.classes}, {"l2", own.l2}};
  entry["scores"]["model"] = json_of(value);
  const auto add = [&](const std::string& name, const BothScores& s) {
    entry["baselines"][name] = main(s).mean, entry["baseline_standard_errors"][name] = main(s).standard_error;
    entry["scores"][name] = json_of(s);
  };
  add("majority", both_scores(std::vector<int64_t>(target.test.size(), most_frequent(target.train)), target, images));
  for (const std::string name : {"random_init", "pixels"})
    if (o.baselines) add(name, both_scores(probe(train.features_rd.at(name), test.features_rd.at(name), target, o.seed).predicted, target, images));
  return entry;
}

struct Overlap {  // of a class, in patches
  int64_t both = 0, either = 0;
};

// Of each class over the patches [first, first + count).
std::vector<Overlap> overlaps(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth, int64_t classes, size_t first, size_t count) {
  std::vector<Overlap> out(static_cast<size_t>(classes));
  for (size_t i = first; i < first + count; ++i)
    for (int64_t c = 0; c < classes; ++c) {
      out[size_t(c)].both += predicted[i] == c && truth[i] == c;
      out[size_t(c)].either += predicted[i] == c || truth[i] == c;
    }
  return out;
}

// all without `less` (may be empty).
double mean_of(const std::vector<Overlap>& all, const std::vector<Overlap>& less) {
  double sum = 0;
  for (size_t c = 0; c < all.size(); ++c) {
    const int64_t both = all[c].both - (less.empty() ? 0 : less[c].both), either = all[c].either - (less.empty() ? 0 : less[c].either);
    sum += either == 0 ? 1 : double(both) / double(either);
  }
  return sum / double(all.size());
}

}  // namespace

std::string masks_of(const std::string& data) {
  const std::string scenes = "scenes:";
  return data.starts_with(scenes) ? "scene-masks:" + data.substr(scenes.size()) : "";
}

std::vector<int64_t> patch_labels(const at::Tensor& masks, int64_t grid) {
  const int64_t n = masks.size(0), patch = masks.size(1) / grid;
  const at::Tensor bright = masks.to(at::kFloat).mean(at::IntArrayRef{3}).gt(127.5).to(at::kFloat);
  const at::Tensor share = bright.view({n, grid, patch, grid, patch}).mean(at::IntArrayRef{2, 4}).contiguous();
  std::vector<int64_t> out;
  for (int64_t i = 0; i < share.numel(); ++i) out.push_back(share.const_data_ptr<float>()[i] > 0.5f ? 1 : 0);
  return out;
}

double mean_iou(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth, int64_t classes) { return mean_of(overlaps(predicted, truth, classes, 0, truth.size()), {}); }

MeanError mean_iou_by_image(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth, int64_t classes, int64_t images) {
  const std::vector<Overlap> all = overlaps(predicted, truth, classes, 0, truth.size());
  const size_t each = truth.size() / size_t(images);
  std::vector<double> without;
  for (size_t i = 0; i < size_t(images); ++i) without.push_back(mean_of(all, overlaps(predicted, truth, classes, i * each, each)));
  return {mean_of(all, {}), mean_error(without).standard_error * double(images - 1)};
}

Result<nlohmann::ordered_json> evaluate_segment(const LoadedModel& model, const EvaluationOptions& o, const std::string& mask_path) {
  const Millis start = monotonic_ms();
  TESSERA_ASSIGN(const Sources from, open_sources(o, mask_path));
  const int64_t count = from.images->info().sample_count;
  Labelled data;
  data.train_ids = choose_samples(count, std::min(o.train_images, kMostTrain), o.seed, 0), data.test_ids = choose_samples(count, std::min(o.test_images, kMostTest), o.seed, 1);
  if (int64_t(std::min(data.train_ids.size(), data.test_ids.size())) < kFewest)
    return fail(ErrorCode::kFixData, "a probe needs at least 10 images to train on and 10 to test on; " + o.data + " gives " + std::to_string(data.train_ids.size()) + " and " + std::to_string(data.test_ids.size()));
  TESSERA_ASSIGN(const Patches train, read_patches(model, o, from, data.train_ids));
  TESSERA_ASSIGN(const Patches test, read_patches(model, o, from, data.test_ids));
  TESSERA_ASSIGN(const Target target, target_of(train, test, from.mask_path));
  log_info("{} patches to train on, {} to test on, {} classes", target.train.size(), target.test.size(), target.classes);
  const nlohmann::ordered_json entry = entry_of(train, test, target, o, int64_t(data.test_ids.size()));
  const std::string label = from.label.empty() ? "object" : from.label;
  nlohmann::ordered_json out{{"schema", 1}};
  for (const auto& [key, item] : entry.items()) out[key] = item;
  out["label"] = label, out["probes"] = {{label, entry}};
  EvaluationOptions settings = o;
  settings.pooling = Pooling::kPatches;
  out["settings"] = common_settings("segment", model, settings, data);
  out["settings"]["masks"] = from.mask_path;
  out["settings"]["seconds"] = double(monotonic_ms() - start) / 1000.0;
  return out;
}

}  // namespace tessera::evaluate
