// A file read at given offsets: a local one, or a remote object through its store.
//
// Local: pread, not mmap: a shard that is cut while it is read gives an error, never SIGBUS. Remote: an object that changes
// while it is read gives an error (remote/object_store.h); read from front to back, it comes in requests of 8 MiB.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "common/result.h"

namespace tessera::data {

class ObjectStore;
struct RemoteObject;

class RandomAccessFile {
 public:
  // Error: kFixData (missing, a folder, no permission), naming the path.
  static Result<RandomAccessFile> open(const std::string& path);
  // A path of a dataset: remote ones ask the store, which may be null for local ones. Errors as above; kIo.
  static Result<RandomAccessFile> open(const std::string& path, const std::shared_ptr<ObjectStore>& store);
  ~RandomAccessFile();
  RandomAccessFile(RandomAccessFile&& other) noexcept;
  RandomAccessFile& operator=(RandomAccessFile&& other) noexcept;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // when it was opened
  // Of a remote object: its version (RemoteObject::version).
  int64_t modified_ns() const { return modified_ns_; }
  // Exactly `count` bytes from `offset`. Errors: kFixData when the file ends before, or the object changed; kIo when the
  // disk or the network refuses.
  Status read(int64_t offset, void* to, int64_t count) const;
  Result<std::string> read(int64_t offset, int64_t count) const;
  bool is_remote() const { return remote_ != nullptr; }
  // The next read of these bytes asks the source, not a cache.
  void forget_cached(int64_t offset, int64_t count) const;

 private:
  struct Remote;
  RandomAccessFile();
  Status read_remote(int64_t offset, void* to, int64_t count) const;
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
  int64_t modified_ns_ = 0;
  std::unique_ptr<Remote> remote_;  // null: local
};

}  // namespace tessera::data
