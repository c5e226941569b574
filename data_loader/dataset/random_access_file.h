// A file read at given offsets. pread, not mmap: a shard that is cut while it is read gives an error, never SIGBUS.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "common/result.h"

namespace tessera::data {

class RandomAccessFile {
 public:
  // Error: kFixData (missing, a folder, no permission), naming the path.
  static Result<RandomAccessFile> open(const std::string& path);
  ~RandomAccessFile();
  RandomAccessFile(RandomAccessFile&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_), modified_ns_(other.modified_ns_) {}
  RandomAccessFile& operator=(RandomAccessFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(descriptor_, other.descriptor_);
    size_ = other.size_, modified_ns_ = other.modified_ns_;
    return *this;
  }

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // when it was opened
  int64_t modified_ns() const { return modified_ns_; }
  // Exactly `count` bytes from `offset`. Errors: kFixData when the file ends before, kIo when the disk refuses.
  Status read(int64_t offset, void* to, int64_t count) const;
  Result<std::string> read(int64_t offset, int64_t count) const;

 private:
  RandomAccessFile(std::string path, int descriptor, int64_t size, int64_t modified_ns)
      : path_(std::move(path)), descriptor_(descriptor), size_(size), modified_ns_(modified_ns) {}
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
  int64_t modified_ns_ = 0;
};

}  // namespace tessera::data
