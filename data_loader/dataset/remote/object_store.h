// Remote objects by their paths ("http(s)://...", "s3://BUCKET/KEY"): what they are, and their bytes in blocks through the
// cache. One per opened dataset; any number of threads may use it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/hash.h"
#include "common/result.h"
#include "data_loader/dataset/remote/http_client.h"
#include "data_loader/dataset/remote/object_cache.h"

namespace tessera::data {

struct RemoteOptions {
  std::string cache_dir = "auto";                // see operation.remote.cache_dir; empty: no cache
  int64_t cache_bytes = int64_t{16} << 30;
  HttpOptions http;
};

struct RemoteObject {
  std::string path;      // as the dataset names it
  std::string url;
  int64_t size = 0;
  std::string etag;      // as the server wrote it; empty: it has none
  std::string modified;  // Last-Modified, for servers without ETags
  // What tells this content from another of the same path, as a number for a manifest's FileEntry.modified_ns.
  int64_t version() const;
  Hash128 identity() const;
};

class ObjectStore {
 public:
  static constexpr int64_t kBlockBytes = 1 << 20;
  static constexpr int64_t kReadAhead = 8;  // blocks of one request, when an object is read from front to back

  // A cache folder that cannot be used is said in the log and done without.
  static std::shared_ptr<ObjectStore> open(const RemoteOptions& options);

  // Size and ETag, from what was listed or asked before in this process, else by HEAD. Errors: kFixData (404, 403, no size;
  // the URL, the status and what to do), kIo.
  Result<RemoteObject> object(const std::string& path);
  // nullopt: there is none (404, or 403 as a store answers that may not list). For small objects, up to 64 MiB.
  Result<std::optional<std::string>> whole_if_there(const std::string& path);
  // The objects of "s3://BUCKET/PREFIX" whose keys go on without a further '/', in bytewise order of their paths; they are
  // remembered for object(). Errors as above, and kFixData: an answer that is no listing.
  Result<std::vector<RemoteObject>> list(const std::string& s3_prefix);

  // Bytes [offset, offset + count) of the object, which must still be what it was: a request says which ETag it wants, and
  // an answer of another ETag or size is refused. Errors: kFixData (changed, gone; URL, byte, both ETags), kIo.
  Result<std::string> read(const RemoteObject& object, int64_t offset, int64_t count);
  // Whole blocks [first, first + count), of which the last may be the object's short one.
  Result<std::string> blocks(const RemoteObject& object, int64_t first, int64_t count);
  // Forgets cached blocks, so that the next read asks the source.
  void forget(const RemoteObject& object, int64_t offset, int64_t count);

  const HttpClient& http() const { return http_; }
  ObjectCache* cache() { return cache_.get(); }

 private:
  ObjectStore(const RemoteOptions& options, std::shared_ptr<ObjectCache> cache) : http_(options.http, S3Access::from_environment()), cache_(std::move(cache)) {}
  std::string url_of(const std::string& path) const;
  Result<std::string> fetch(const RemoteObject& object, int64_t offset, int64_t count) const;
  std::mutex& turn_of(const RemoteObject& object, int64_t block);

  HttpClient http_;
  std::shared_ptr<ObjectCache> cache_;           // null: none
  std::mutex mutex_;
  std::map<std::string, RemoteObject> known_;    // by path
  std::array<std::mutex, 64> turns_;             // one thread fetches a block, others that want it wait
};

}  // namespace tessera::data
