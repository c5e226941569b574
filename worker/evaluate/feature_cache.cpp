#include "worker/evaluate/feature_cache.h"

#include <ATen/ops/empty.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <unistd.h>
#include <vector>

#include "common/file.h"
#include "common/log.h"
#include "common/safetensors.h"

namespace tessera::evaluate {

namespace fs = std::filesystem;

std::string FeatureCache::folder_for(const std::string& run_dir) {
  if (const char* folder = std::getenv("TESSERA_CACHE"); folder != nullptr && *folder != 0) return std::string(folder) + "/features";
  return run_dir.empty() ? "" : run_dir + "/evaluation/cache";
}

std::string FeatureCache::path_of(const Hash128& key) const { return folder_ + "/" + to_hex(key) + ".safetensors"; }

std::optional<at::Tensor> FeatureCache::find(const Hash128& key) const {
  std::error_code error;
  if (folder_.empty() || !fs::exists(path_of(key), error)) return std::nullopt;
  const auto file = SafetensorsFile::open(path_of(key));
  const TensorView* stored = file ? file->find("features") : nullptr;
  if (stored == nullptr || (stored->dtype != "F32" && stored->dtype != "F64")) return std::nullopt;
  const auto hash = file->metadata().find("hash");
  if (hash == file->metadata().end() || hash->second != to_hex(hash_bytes(stored->data, size_t(stored->size_bytes)))) {
    log_warning("{} is damaged and is made again", path_of(key));
    return std::nullopt;
  }
  at::Tensor out = at::empty(stored->shape, stored->dtype == "F32" ? at::kFloat : at::kDouble);
  std::memcpy(out.mutable_data_ptr(), stored->data, size_t(stored->size_bytes));
  fs::last_write_time(path_of(key), fs::file_time_type::clock::now(), error);  // used just now
  return out;
}

void FeatureCache::make_room(int64_t bytes) const {
  struct File {
    fs::path path;
    fs::file_time_type used;
    int64_t size;
  };
  std::vector<File> files;
  std::error_code error;
  int64_t total = bytes;
  for (const auto& entry : fs::directory_iterator(folder_, error)) {
    if (entry.path().extension() != ".safetensors") continue;
    files.push_back({entry.path(), entry.last_write_time(error), int64_t(entry.file_size(error))});
    total += files.back().size;
  }
  std::sort(files.begin(), files.end(), [](const File& a, const File& b) { return a.used < b.used; });
  for (const File& file : files) {
    if (total <= limit_bytes_) return;
    if (fs::remove(file.path, error)) total -= file.size;
  }
}

void FeatureCache::keep(const Hash128& key, const at::Tensor& features) const {
  const at::Tensor whole = features.contiguous();
  const int64_t bytes = int64_t(whole.nbytes());
  if (folder_.empty() || bytes > limit_bytes_ / 2 || !make_folders(folder_)) return;
  make_room(bytes);
  const std::string temporary = path_of(key) + ".tmp-" + std::to_string(::getpid());
  const std::string dtype = whole.scalar_type() == at::kFloat ? "F32" : "F64";
  const auto written = write_safetensors(temporary, {{"features", dtype, whole.sizes().vec(), whole.const_data_ptr(), bytes}}, {{"hash", to_hex(hash_bytes(whole.const_data_ptr(), size_t(bytes)))}});
  std::error_code error;
  if (written) fs::rename(temporary, path_of(key), error);
  if (!written || error) {
    log_warning("features are not kept in {}: {}", folder_, written ? error.message() : written.error().message);
    fs::remove(temporary, error);
  }
}

}  // namespace tessera::evaluate
