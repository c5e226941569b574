// Features on disk by the hash of what they are a function of, so that a second evaluation of the same features reads no image.
//
// Folder: $TESSERA_CACHE/features, or evaluation/cache of the run; without either nothing is kept. One safetensors file per key,
// with the hash of its bytes: a damaged one counts as missing. Bounded: the files used longest ago go first.
#pragma once

#include <ATen/core/Tensor.h>
#include <optional>
#include <string>

#include "common/hash.h"

namespace tessera::evaluate {

class FeatureCache {
 public:
  static constexpr int64_t kLimitBytes = int64_t{2} << 30;
  // folder empty: finds nothing, keeps nothing.
  explicit FeatureCache(std::string folder, int64_t limit_bytes = kLimitBytes) : folder_(std::move(folder)), limit_bytes_(limit_bytes) {}
  static std::string folder_for(const std::string& run_dir);

  // fp32 or fp64, as kept.
  std::optional<at::Tensor> find(const Hash128& key) const;
  // What cannot be kept (no space, larger than half the limit) is not: an evaluation does not fail for its cache.
  void keep(const Hash128& key, const at::Tensor& features) const;

 private:
  void make_room(int64_t bytes) const;
  std::string path_of(const Hash128& key) const;
  std::string folder_;
  int64_t limit_bytes_;
};

}  // namespace tessera::evaluate
