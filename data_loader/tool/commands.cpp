#include "data_loader/tool/commands.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "common/clock.h"
#include "data_loader/dataset/parallel.h"
#include "data_loader/dataset/repack.h"
#include "data_loader/decode/decode.h"

namespace tessera::data {
namespace {

nlohmann::json summary(const Dataset& dataset) {
  const Manifest& manifest = *dataset.manifest;
  nlohmann::json out{{"schema", 1},
                     {"samples", manifest.sample_count()},
                     {"shards", manifest.shard_count()},
                     {"bytes", manifest.total_bytes()},
                     {"packed", manifest.packed_count()},
                     {"manifest_digest", to_hex(manifest.digest())},
                     {"bad", nlohmann::json::array()},
                     {"kind", manifest.kind()},
                     {"source", manifest.source()},
                     {"manifest", dataset.manifest_path},
                     {"indexed", !dataset.made_because.empty()},
                     {"because", dataset.made_because},
                     {"labels", manifest.label_names()},
                     {"classes", manifest.class_names()}};
  for (const BadSample& bad : manifest.bad()) out["bad"].push_back({{"key", bad.key}, {"reason", bad.reason}});
  return out;
}

nlohmann::json label_ranges(const Manifest& manifest) {
  nlohmann::json out = nlohmann::json::object();
  for (size_t l = 0; l < manifest.label_names().size(); ++l) {
    double low = INFINITY, high = -INFINITY, sum = 0;
    int64_t count = 0;
    for (SampleId id = 0; id < manifest.sample_count(); ++id) {
      const double value = manifest.labels(id)[l];
      if (std::isnan(value)) continue;
      low = std::min(low, value), high = std::max(high, value), sum += value, ++count;
    }
    out[manifest.label_names()[l]] = {{"samples", count}, {"min", count ? low : 0}, {"max", count ? high : 0}, {"mean", count ? sum / double(count) : 0}};
  }
  return out;
}

// Reads, checks and decodes a sample; a packed one by way of the image that it was made of. Empty: it is good.
std::string what_is_wrong(const Dataset& dataset, SampleReader& reader, SampleId id) {
  auto bytes = reader.read(id);
  if (!bytes) return bytes.error().message;
  const auto image = original_image(dataset.manifest->stored(id), std::move(*bytes));
  if (!image) return reader.where(id) + ": " + image.error().message;
  if (hash_bytes(*image) != dataset.manifest->content_hash(id)) return reader.where(id) + " unpacks to another image than the manifest has; repack it from the original";
  const auto decoded = decode({reinterpret_cast<const uint8_t*>(image->data()), image->size()});
  return decoded ? "" : reader.where(id) + " does not decode: " + decoded.error().message;
}

}  // namespace

Result<nlohmann::json> index_command(const OpenOptions& options) {
  TESSERA_ASSIGN(const auto dataset, open_dataset(options));
  return summary(*dataset);
}

Result<nlohmann::json> inspect_command(const OpenOptions& options) {
  TESSERA_ASSIGN(const auto dataset, open_dataset(options));
  const Manifest& manifest = *dataset->manifest;
  nlohmann::json out = summary(*dataset);
  out["label_ranges"] = label_ranges(manifest);
  out["first"] = nlohmann::json::array();
  for (SampleId id = 0; id < std::min<int64_t>(5, manifest.sample_count()); ++id) {
    nlohmann::json labels = nlohmann::json::object();
    for (size_t l = 0; l < manifest.label_names().size(); ++l)
      if (const double value = manifest.labels(id)[l]; !std::isnan(value)) labels[manifest.label_names()[l]] = value;
    out["first"].push_back({{"sample", id}, {"key", manifest.key(id)}, {"bytes", manifest.stored(id).size}, {"hash", to_hex(manifest.content_hash(id))}, {"labels", labels}});
  }
  return out;
}

Result<nlohmann::json> verify_command(const OpenOptions& options) {
  TESSERA_ASSIGN(const auto dataset, open_dataset(options));
  const int64_t count = dataset->manifest->sample_count();
  constexpr int64_t kRun = 64;
  std::mutex mutex;
  std::map<SampleId, std::string> bad;
  TESSERA_TRY(parallel_for((count + kRun - 1) / kRun, options.threads, [&](int64_t run) -> Status {
    SampleReader reader(dataset);
    for (SampleId id = run * kRun; id < std::min(count, (run + 1) * kRun); ++id) {
      const std::string reason = what_is_wrong(*dataset, reader, id);
      if (reason.empty()) continue;
      std::lock_guard lock(mutex);
      bad.emplace(id, std::move(reason));
    }
    return {};
  }));
  nlohmann::json out = summary(*dataset);
  out["bad"] = nlohmann::json::array();
  for (const auto& [id, reason] : bad) out["bad"].push_back({{"sample", id}, {"key", dataset->manifest->key(id)}, {"reason", reason}});
  return out;
}

Result<nlohmann::json> repack_command(const OpenOptions& open, const std::string& out) {
  const double start = monotonic_seconds();
  TESSERA_ASSIGN(const auto dataset, open_dataset(open));
  TESSERA_ASSIGN(const Repacked repacked, repack(dataset, {out, open.threads}));
  OpenOptions made = open;
  made.data_path = out, made.index_again = false;
  TESSERA_ASSIGN(nlohmann::json json, index_command(made));
  json["kept"] = repacked.kept, json["shards_resumed"] = repacked.shards_resumed;
  json["original_bytes"] = repacked.original_bytes, json["stored_bytes"] = repacked.stored_bytes;
  json["size_ratio"] = double(repacked.stored_bytes) / double(std::max<int64_t>(1, repacked.original_bytes));
  json["seconds"] = monotonic_seconds() - start;
  return json;
}

Result<nlohmann::json> make_scenes_command(const std::string& folder, const std::string& masks, const ScenesOptions& options, const OpenOptions& open) {
  const double start = monotonic_seconds();
  TESSERA_TRY(make_scenes(folder, options));
  const double seconds = monotonic_seconds() - start;
  if (!masks.empty()) {
    ScenesOptions same = options;
    same.pictures = ScenePictures::kMasks;
    TESSERA_TRY(make_scenes(masks, same));
  }
  OpenOptions made = open;
  made.data_path = folder;
  TESSERA_ASSIGN(nlohmann::json out, index_command(made));
  out["seconds"] = seconds;
  out["images_per_second"] = double(options.count) / std::max(seconds, 1e-9);
  return out;
}

}  // namespace tessera::data
