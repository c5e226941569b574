// A dataset that is ready to be read: its manifest, opened or made, and the place of its files.
//
//   TESSERA_ASSIGN(auto dataset, open_dataset({.data_path = "photos/"}));
//   SampleReader reader(dataset);                        // one per thread
//   TESSERA_ASSIGN(std::string jpeg, reader.read(id));   // checked against the manifest's hash
#pragma once

#include <list>
#include <memory>
#include <string>
#include <unordered_map>

#include "common/result.h"
#include "data_loader/dataset/manifest.h"
#include "data_loader/dataset/random_access_file.h"
#include "data_loader/dataset/remote/object_store.h"

namespace tessera::data {

struct OpenOptions {
  std::string data_path;                            // as operation.data_path: see source.h, and scenes.h for "scenes:N"
  std::string manifest_folder = "runs/.manifests";  // for data folders that are read-only
  int threads = 2;                                  // of indexing; never changes the digest
  bool index_again = false;                         // even when the manifest looks fresh
  RemoteOptions remote;                             // of http(s):// and s3:// paths
};

// Immutable; any number of threads may share it.
struct Dataset {
  std::shared_ptr<const Manifest> manifest;
  std::string base;           // folder that file paths are relative to
  std::string manifest_path;  // where the manifest was read from or written to
  std::string made_because;   // why it was indexed just now; empty when the manifest was there and fresh
  std::shared_ptr<ObjectStore> store;  // of remote data; null for local
  std::string path_of(uint32_t file) const { return base + "/" + std::string(manifest->file_path(file)); }
};

// Opens the manifest, or indexes the files and writes it: `.tessera-manifest` in the data folder, or, when that is
// read-only (no write bit counts, even for root), <manifest_folder>/<hash of the absolute path>. A manifest whose files
// have changed since, or that is damaged, is made again. Errors: those of find_source and index_source, kIo.
Result<std::shared_ptr<const Dataset>> open_dataset(const OpenOptions& options);

// Error kFixConfig with both digests when `wanted` (function.data.manifest_digest) is neither "auto" nor the dataset's.
Status check_digest(const Dataset& dataset, const std::string& wanted);

// Reads samples' stored bytes. Keeps a few files open; not thread-safe. Bytes of a remote shard that differ from the
// manifest's hash are read once more past the cache.
class SampleReader {
 public:
  explicit SampleReader(std::shared_ptr<const Dataset> dataset) : dataset_(std::move(dataset)) {}
  // The stored bytes: the encoded image, or its packed form (decode.h takes both; original_image() in repack.h gives the
  // original). Errors: kFixData when they differ from the manifest's hash (they are never used), the
  // shard is shorter or gone; kIo. The sentence names shard, key and byte.
  Result<std::string> read(SampleId id);
  // "shard train-000.tar, key 'a/b', byte 10240" or "file cat/1.jpg".
  std::string where(SampleId id) const;

 private:
  Result<const RandomAccessFile*> file(uint32_t index);
  static constexpr size_t kMaxOpen = 32;
  std::shared_ptr<const Dataset> dataset_;
  std::list<std::pair<uint32_t, RandomAccessFile>> open_;  // most recent first
};

}  // namespace tessera::data
