#include "worker/evaluate/labelled.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "common/log.h"
#include "common/philox.h"
#include "worker/evaluate/feature_cache.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kBins = 8, kSmallestPart = 10;
constexpr size_t kChunk = 512;

// Which samples are held out depends on the sample alone: a fifth by hash.
bool held_out(SampleId id, int64_t seed) { return PhiloxStream(uint64_t(seed), Purpose::kProbe, uint64_t(id), 0).next_below(5) == 0; }

// Features and labels of every image that some seed wants.
struct Pool {
  std::vector<SampleId> ids;
  std::map<std::string, at::Tensor> features;
  std::map<std::string, std::vector<double>> labels;
  bool from_cache = false;  // all of it: no image was read
};

// What a kind of features is a function of.
Hash128 cache_key(const std::string& kind, const LoadedModel& model, const EvaluationOptions& o, const proto::DatasetInfo& info, const std::vector<SampleId>& ids) {
  Hasher hasher;
  hasher.add_string("tessera features 1"), hasher.add_string(kind), hasher.add_hash(info.manifest_digest);
  hasher.add_i64(model.function.model.image_size), hasher.add_i64(int64_t(o.pooling));
  hasher.add_bytes(ids.data(), ids.size() * sizeof(SampleId));
  if (kind == "labels")
    for (const std::string& name : info.label_names) hasher.add_string(name);
  if (kind == "pixels") hasher.add_i64(o.pooling == Pooling::kPatches ? model.function.model.patch_size : 0);
  if (kind == "model" || kind == "random_init") hasher.add_i64(int64_t(o.encoder)), hasher.add_string(print_function(model.function));
  if (kind == "model") {
    hasher.add_string(to_hex(model.state.digest()));
    const at::Tensor& position = o.encoder == EncoderKind::kContext ? model.state.context_position : model.state.target_position;  // no part of the digest
    hasher.add_bytes(position.const_data_ptr(), position.nbytes());
  }
  return hasher.finish();
}

// Labels as a tensor [names, n], in the loader's order of names.
at::Tensor labels_tensor(const std::map<std::string, std::vector<double>>& labels, const std::vector<std::string>& names, size_t n) {
  at::Tensor out = at::empty({int64_t(names.size()), int64_t(n)}, at::kDouble);
  for (size_t l = 0; l < names.size(); ++l) std::copy(labels.at(names[l]).begin(), labels.at(names[l]).end(), out.mutable_data_ptr<double>() + l * n);
  return out;
}
void set_labels(Pool& pool, const at::Tensor& labels_ln, const std::vector<std::string>& names) {
  const size_t n = pool.ids.size();
  for (size_t l = 0; l < names.size(); ++l) pool.labels[names[l]].assign(labels_ln.const_data_ptr<double>() + l * n, labels_ln.const_data_ptr<double>() + (l + 1) * n);
}

// Reads images and computes the kinds that are not in the cache.
Status extract(const LoadedModel& model, const EvaluationOptions& o, SampleSource& source, const std::set<std::string>& missing, Pool& pool) {
  const LoadedModel random = missing.contains("random_init") ? random_model(model) : LoadedModel{};
  std::map<std::string, std::vector<at::Tensor>> parts;
  const FrozenEncoder encoder(model, o.encoder);
  std::optional<FrozenEncoder> random_encoder;
  if (missing.contains("random_init")) random_encoder.emplace(random, o.encoder);
  const std::vector<std::string>& names = source.info().label_names;
  for (const std::string& name : names) pool.labels[name].clear();
  TESSERA_TRY(read_in_chunks(source, pool.ids, int(model.function.model.image_size), [&](const Samples& some) -> Status {
    if (missing.contains("raw")) parts["raw"].push_back(some.pixels);
    if (missing.contains("model")) parts["model"].push_back(encoder.features(some.pixels, o.pooling));
    if (random_encoder) parts["random_init"].push_back(random_encoder->features(some.pixels, o.pooling));
    if (missing.contains("pixels")) parts["pixels"].push_back(o.pooling == Pooling::kPatches ? pixel_patches(some.pixels, encoder.grid(some.pixels.size(1))) : pixel_features(some.pixels));
    for (const std::string& name : names) {
      const auto found = some.labels.find(name);
      for (size_t i = 0; i < some.ids.size(); ++i) pool.labels[name].push_back(found == some.labels.end() ? std::nan("") : found->second[i]);
    }
    return {};
  }));
  for (auto& [name, list] : parts) pool.features[name] = at::cat(list);
  return {};
}

Result<Pool> read_pool(const LoadedModel& model, const EvaluationOptions& o, SampleSource& source, std::vector<SampleId> ids) {
  Pool pool{std::move(ids), {}, {}, true};
  std::set<std::string> missing{"model"};
  if (o.baselines) missing.insert({"random_init", "pixels"});
  if (o.raw_pixels) missing = {"raw"};
  if (!source.info().label_names.empty()) missing.insert("labels");
  const FeatureCache cache(o.pooling == Pooling::kPatches || o.raw_pixels ? "" : FeatureCache::folder_for(model.run_dir));  // too many to keep
  const auto key = [&](const std::string& kind) { return cache_key(kind, model, o, source.info(), pool.ids); };
  for (auto kind = missing.begin(); kind != missing.end();) {
    const auto kept = cache.find(key(*kind));
    if (kept && *kind == "labels") set_labels(pool, *kept, source.info().label_names);
    else if (kept) pool.features[*kind] = *kept;
    kind = kept ? missing.erase(kind) : std::next(kind);
  }
  pool.from_cache = missing.empty();
  if (pool.from_cache) log_info("features of {} images from the cache", pool.ids.size());
  else log_info("features of {} images", pool.ids.size());
  if (!missing.empty()) TESSERA_TRY(extract(model, o, source, missing, pool));
  if (!o.raw_pixels) TESSERA_TRY(check_finite(pool.features["model"], model.checkpoint));
  for (const std::string& kind : missing) cache.keep(key(kind), kind == "labels" ? labels_tensor(pool.labels, source.info().label_names, pool.ids.size()) : pool.features[kind]);
  return pool;
}

std::vector<int64_t> rows_of(const Pool& pool, const std::vector<SampleId>& ids) {
  std::vector<int64_t> rows;
  for (const SampleId id : ids) rows.push_back(std::lower_bound(pool.ids.begin(), pool.ids.end(), id) - pool.ids.begin());
  return rows;
}

std::vector<double> values_of(const std::vector<double>& all, const std::vector<int64_t>& rows) {
  std::vector<double> out;
  for (const int64_t row : rows) out.push_back(all[size_t(row)]);
  return out;
}

std::vector<SampleId> together(const std::vector<std::vector<SampleId>>& lists) {
  std::set<SampleId> all;
  for (const auto& list : lists) all.insert(list.begin(), list.end());
  return {all.begin(), all.end()};
}

Status find_targets(const EvaluationOptions& o, const Pool& train, const Pool& test, Labelled& out, const std::vector<int64_t>& train_rows, const std::vector<int64_t>& test_rows) {
  std::string one_class;
  const auto known = [](const std::vector<double>& list) { return std::none_of(list.begin(), list.end(), [](double v) { return std::isnan(v); }); };
  for (const auto& [name, values] : train.labels) {
    if (!o.labels.empty() && std::find(o.labels.begin(), o.labels.end(), name) == o.labels.end()) continue;
    const auto in_test = test.labels.find(name);
    if (in_test == test.labels.end()) continue;
    const auto train_values = values_of(values, train_rows), test_values = values_of(in_test->second, test_rows);
    if (!known(train_values) || !known(test_values)) continue;
    Target target = make_target(train_values, test_values);
    if (target.classes >= 2) out.targets[name] = std::move(target);
    else one_class = name;
  }
  if (!out.targets.empty()) return {};
  if (!one_class.empty()) return fail(ErrorCode::kFixData, o.data + ": all images have the same " + one_class + "; there is nothing to tell apart with one class only");
  if (!o.labels.empty()) return fail(ErrorCode::kFixData, o.data + " has no label " + o.labels[0] + " that every image carries");
  return fail(ErrorCode::kFixData, o.data + " has no labels: this evaluation needs class folders, .cls or .json members (embed and neighbours work without)");
}

}  // namespace

at::Tensor rows_tensor(const std::vector<int64_t>& rows) {
  at::Tensor out = at::empty({int64_t(rows.size())}, at::kLong);
  std::copy(rows.begin(), rows.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

std::vector<int64_t> pick(const std::vector<int64_t>& list, const std::vector<int64_t>& rows) {
  std::vector<int64_t> out;
  for (const int64_t row : rows) out.push_back(list[size_t(row)]);
  return out;
}

MeanError mean_error(const std::vector<double>& values) {
  if (values.empty()) return {};
  const double n = double(values.size());
  double mean = 0, square = 0;
  for (const double v : values) mean += v / n;
  for (const double v : values) square += (v - mean) * (v - mean);
  return {mean, n > 1 ? std::sqrt(square / (n - 1) / n) : 0};
}

std::vector<SampleId> choose_samples(int64_t count, int64_t wanted, int64_t seed, int part) {
  std::vector<SampleId> all;
  for (SampleId id = 0; id < count; ++id)
    if (part < 0 || held_out(id, seed) == (part == 1)) all.push_back(id);
  PhiloxStream random(uint64_t(seed), Purpose::kProbe, uint64_t(count), uint32_t(2 + part));
  for (size_t i = 0; i + 1 < all.size() && int64_t(i) < wanted; ++i) std::swap(all[i], all[i + random.next_below(uint32_t(all.size() - i))]);
  if (int64_t(all.size()) > wanted) all.resize(size_t(wanted));
  std::sort(all.begin(), all.end());
  return all;
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

Status read_in_chunks(SampleSource& source, const std::vector<SampleId>& ids, int size, const std::function<Status(const Samples&)>& use) {
  for (size_t first = 0; first < ids.size(); first += kChunk) {
    const size_t count = std::min(kChunk, ids.size() - first);
    TESSERA_ASSIGN(const Samples some, source.read({ids.begin() + int64_t(first), ids.begin() + int64_t(first + count)}, size));
    TESSERA_TRY(use(some));
  }
  return {};
}

Result<std::vector<Labelled>> read_labelled(const LoadedModel& model, const EvaluationOptions& o, const std::vector<int64_t>& seeds) {
  const bool own_test = !o.test_data.empty();
  TESSERA_ASSIGN(const auto source, SampleSource::open(o.data, o.threads));
  std::unique_ptr<SampleSource> test_source;
  if (own_test) {
    TESSERA_ASSIGN(test_source, SampleSource::open(o.test_data, o.threads));
  }
  SampleSource& test_from = own_test ? *test_source : *source;
  std::vector<Labelled> out;
  std::vector<std::vector<SampleId>> train_lists, test_lists;
  for (const int64_t seed : seeds) {
    Labelled one;
    train_lists.push_back(one.train_ids = choose_samples(source->info().sample_count, o.train_images, seed, own_test ? -1 : 0));
    test_lists.push_back(one.test_ids = choose_samples(test_from.info().sample_count, o.test_images, seed, own_test ? -1 : 1));
    if (int64_t(one.train_ids.size()) < kSmallestPart || int64_t(one.test_ids.size()) < kSmallestPart)
      return fail(ErrorCode::kFixData, "a probe needs at least 10 images to train on and 10 to test on; " + o.data + (own_test ? " and " + o.test_data + " give " : " gives ") +
                                           std::to_string(one.train_ids.size()) + " and " + std::to_string(one.test_ids.size()));
    out.push_back(std::move(one));
  }
  if (!own_test) train_lists.insert(train_lists.end(), test_lists.begin(), test_lists.end());
  TESSERA_ASSIGN(const Pool train, read_pool(model, o, *source, together(train_lists)));
  Pool apart;
  if (own_test) {
    TESSERA_ASSIGN(apart, read_pool(model, o, *test_source, together(test_lists)));
  }
  const Pool& test = own_test ? apart : train;
  for (Labelled& one : out) {
    one.from_cache = train.from_cache && test.from_cache;
    const auto train_rows = rows_of(train, one.train_ids), test_rows = rows_of(test, one.test_ids);
    for (const auto& [name, tensor] : train.features)
      one.features[name] = {tensor.index_select(0, rows_tensor(train_rows)), test.features.at(name).index_select(0, rows_tensor(test_rows))};
    TESSERA_TRY(find_targets(o, train, test, one, train_rows, test_rows));
  }
  return out;
}

nlohmann::ordered_json common_settings(const std::string& protocol, const LoadedModel& model, const EvaluationOptions& o, const Labelled& data) {
  return {{"protocol", protocol},
          {"encoder", o.encoder == EncoderKind::kTarget ? "target" : "context"},
          {"features", o.pooling == Pooling::kLast4 ? "last4" : o.pooling == Pooling::kPatches ? "patches" : "last"},
          {"pixel_side", kPixelSide},
          {"data", o.data},
          {"test_data", o.test_data.empty() ? "held out of data" : o.test_data},
          {"train_images", data.train_ids.size()},
          {"test_images", data.test_ids.size()},
          {"seed", o.seed},
          {"model", model.checkpoint},
          {"step", model.state.step},
          {"features_from_cache", data.from_cache},
          {"checkpoint_digest", to_hex(model.state.digest())}};
}

}  // namespace tessera::evaluate
