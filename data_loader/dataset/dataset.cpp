#include "data_loader/dataset/dataset.h"

#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "data_loader/dataset/index.h"
#include "data_loader/dataset/remote/url.h"
#include "data_loader/dataset/scenes_cache.h"
#include "data_loader/dataset/source.h"

namespace tessera::data {
namespace {

constexpr const char* kManifestName = ".tessera-manifest";

std::string manifest_in_folder(const SourcePlace& place) {
  const std::string name = place.base + "/" + kManifestName;
  return place.whole_folder ? name : name + "-" + to_hex(hash_bytes(place.source)).substr(0, 16);
}

std::string manifest_elsewhere(const SourcePlace& place, const std::string& folder) { return folder + "/" + to_hex(hash_bytes(place.source)); }

bool is_writable(const std::string& folder) {
  struct stat info{};
  return ::stat(folder.c_str(), &info) == 0 && (info.st_mode & 0222) != 0 && ::access(folder.c_str(), W_OK) == 0;
}

Result<std::string> store(const ManifestDraft& draft, const SourcePlace& place, const std::string& manifest_folder) {
  const std::string bytes = encode_manifest(draft);
  if (is_writable(place.base)) {
    const std::string path = manifest_in_folder(place);
    if (write_file_atomic(path, bytes)) return path;
  }
  TESSERA_TRY(make_folders(manifest_folder));
  const std::string path = manifest_elsewhere(place, manifest_folder);
  TESSERA_TRY(write_file_atomic(path, bytes));
  return path;
}

}  // namespace

Result<std::shared_ptr<const Dataset>> open_dataset(const OpenOptions& options) {
  std::string data_path = options.data_path;
  if (is_scenes_path(data_path)) {
    TESSERA_ASSIGN(data_path, ensure_scenes(data_path, options.threads));
  }
  TESSERA_ASSIGN(const SourcePlace place, place_source(data_path));
  auto dataset = std::make_shared<Dataset>();
  dataset->base = place.base;
  if (is_remote_path(place.base)) dataset->store = ObjectStore::open(options.remote);
  dataset->made_because = options.index_again ? "it was asked for" : "there was no manifest";
  for (const std::string& path : {manifest_in_folder(place), manifest_elsewhere(place, options.manifest_folder)}) {
    if (options.index_again || ::access(path.c_str(), F_OK) != 0) continue;
    auto manifest = Manifest::load(path);
    if (!manifest) {
      dataset->made_because = manifest.error().message;
      continue;
    }
    dataset->made_because = why_stale(**manifest, place, dataset->store.get());
    if (!dataset->made_because.empty()) continue;
    dataset->manifest = std::move(*manifest);
    dataset->manifest_path = path;
    return std::shared_ptr<const Dataset>(std::move(dataset));
  }
  TESSERA_ASSIGN(const Source source, find_source(data_path, dataset->store.get()));
  TESSERA_ASSIGN(const ManifestDraft draft, index_source(source, options.threads, dataset->store));
  TESSERA_ASSIGN(dataset->manifest_path, store(draft, place, options.manifest_folder));
  TESSERA_ASSIGN(dataset->manifest, Manifest::load(dataset->manifest_path));
  return std::shared_ptr<const Dataset>(std::move(dataset));
}

Status check_digest(const Dataset& dataset, const std::string& wanted) {
  const std::string found = to_hex(dataset.manifest->digest());
  if (wanted == "auto" || wanted == found) return {};
  return fail(ErrorCode::kFixConfig, "[data_loader] the dataset at " + dataset.manifest->source() + " has manifest_digest " + found + ", but function.data.manifest_digest is " + wanted +
                                         "; point operation.data_path at the data of this run, or set function.data.manifest_digest to auto (which starts a new lineage)");
}

Result<const RandomAccessFile*> SampleReader::file(uint32_t index) {
  for (auto it = open_.begin(); it != open_.end(); ++it) {
    if (it->first != index) continue;
    open_.splice(open_.begin(), open_, it);
    return &open_.front().second;
  }
  TESSERA_ASSIGN(RandomAccessFile opened, RandomAccessFile::open(dataset_->path_of(index), dataset_->store));
  const FileEntry& entry = dataset_->manifest->files()[index];
  if (opened.is_remote() && (opened.size() != entry.size || opened.modified_ns() != entry.modified_ns))
    return fail(ErrorCode::kFixData, "[data_loader] " + opened.path() + " is another object than when it was indexed (" + std::to_string(opened.size()) + " bytes, then " + std::to_string(entry.size) + ", or another ETag); put the old one back, or index again and start a new lineage");
  if (open_.size() >= kMaxOpen) open_.pop_back();
  open_.emplace_front(index, std::move(opened));
  return &open_.front().second;
}

std::string SampleReader::where(SampleId id) const {
  const StoredSample& stored = dataset_->manifest->stored(id);
  const FileEntry& file = dataset_->manifest->files()[stored.file];
  if (file.role == FileRole::kImage) return "file " + dataset_->path_of(stored.file);
  return "shard " + dataset_->path_of(stored.file) + ", key '" + std::string(dataset_->manifest->key(id)) + "', byte " + std::to_string(stored.offset);
}

Result<std::string> SampleReader::read(SampleId id) {
  TESSERA_CHECK(id >= 0 && id < dataset_->manifest->sample_count(), "sample " + std::to_string(id));
  const StoredSample& stored = dataset_->manifest->stored(id);
  const auto named = [&](const Error& error) { return fail(error.code, "[data_loader] sample " + std::to_string(id) + " (" + where(id) + ") cannot be read: " + error.message); };
  const auto opened = file(stored.file);
  if (!opened) return named(opened.error());
  auto bytes = (*opened)->read(stored.offset, stored.size);
  if (!bytes) return named(bytes.error());
  if (hash_bytes(*bytes) != stored.stored_hash && (*opened)->is_remote()) {
    (*opened)->forget_cached(stored.offset, stored.size);
    bytes = (*opened)->read(stored.offset, stored.size);
    if (!bytes) return named(bytes.error());
  }
  if (hash_bytes(*bytes) != stored.stored_hash)
    return fail(ErrorCode::kFixData, "[data_loader] sample " + std::to_string(id) + " (" + where(id) + "): the bytes differ from the manifest's hash " + to_hex(stored.stored_hash) +
                                         "; restore the file, or run tessera data index and start a new lineage");
  return std::move(*bytes);
}

}  // namespace tessera::data
