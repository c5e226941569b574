// Repacking: the same dataset (manifest_digest) in shards that decode several times faster. Baseline JPEGs become packed
// JPEGs (decode/packed_jpeg.h, lossless to the byte); all other images stay as they are. docs/repacked-shards.md.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/result.h"
#include "data_loader/dataset/dataset.h"

namespace tessera::data {

// Extension of a packed JPEG's member in a shard.
inline constexpr const char* kPackedExtension = "tsj";

struct RepackOptions {
  std::string out;  // folder to make; missing or empty
  int threads = 2;  // never changes a byte
};
struct Repacked {
  int64_t packed = 0, kept = 0;                 // samples
  int64_t original_bytes = 0, stored_bytes = 0;  // of their images
  int64_t shards = 0, shards_resumed = 0;       // resumed: found complete and checked, not written again
  std::string manifest_path;
};

// Writes one shard per block of the dataset into <out>.repacking, its manifest, and renames the folder to <out>, so that
// no half dataset is ever at <out>. Each packed image was unpacked and compared with the original, and each shard is read
// back, before it gets its name. Called again after an interruption it checks the shards that are there and goes on.
// Errors: kUsage: <out> is not empty, or <out>.repacking is of another dataset. kFixData: a sample differs from the
// manifest's hash (shard, key and byte are named). kIo.
Result<Repacked> repack(const std::shared_ptr<const Dataset>& dataset, const RepackOptions& options);

// The image as it was before: `stored` itself, or the unpacked original. Error kFixData: it cannot be unpacked.
Result<std::string> original_image(const StoredSample& how, std::string stored);

}  // namespace tessera::data
