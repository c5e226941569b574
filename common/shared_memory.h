// Memory that another process of this host can read, and that nobody can leave behind: memfds, which have no name. The
// creator tells (pid, descriptor, nonce); the reader opens /proc/<pid>/fd/<descriptor>. It is gone when the last process
// that has it mapped is, kill -9 included.
//
// A reader in another pid namespace may find another process, or nothing, under that number: the nonce stands in the
// memory and tells. Whoever may not (another user, no /proc, a container) gets an error and uses a socket.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>

#include "common/result.h"

namespace tessera {

// The same for two processes exactly when they may share memory by these means as far as they can know: boot, pid
// namespace, user. Empty where that cannot be told.
const std::string& host_identity();

// Of the creator: readable and writable.
class SharedBuffer {
 public:
  // Pages are taken when they are written. Error: kIo (no memfd, no memory).
  static Result<std::shared_ptr<SharedBuffer>> create(int64_t size_bytes);
  ~SharedBuffer();
  SharedBuffer(const SharedBuffer&) = delete;
  SharedBuffer& operator=(const SharedBuffer&) = delete;
  uint8_t* data() const;
  int64_t size() const { return size_; }
  int descriptor() const { return descriptor_; }
  uint64_t nonce() const { return nonce_; }

 private:
  SharedBuffer() = default;
  int descriptor_ = -1;
  void* mapping_ = nullptr;
  int64_t size_ = 0;
  uint64_t nonce_ = 0;
};

// Of a reader: read-only. What the creator writes shows at once.
class SharedView {
 public:
  // Error: kUnavailable (no such process or descriptor, not permitted, another memory than the nonce says, smaller).
  static Result<std::shared_ptr<SharedView>> open(int64_t pid, int32_t descriptor, uint64_t nonce, int64_t size_bytes);
  ~SharedView();
  SharedView(const SharedView&) = delete;
  SharedView& operator=(const SharedView&) = delete;
  const uint8_t* data() const;
  int64_t size() const { return size_; }

 private:
  SharedView() = default;
  void* mapping_ = nullptr;
  int64_t size_ = 0;
};

// The views that a reader has of one creator's buffers, mapped once each; the least recently used go. Not thread-safe.
class SharedViews {
 public:
  static constexpr size_t kMost = 32;
  // `size_bytes` of the buffer's content. Errors: SharedView::open's.
  Result<const uint8_t*> get(int64_t pid, int32_t descriptor, uint64_t nonce, int64_t size_bytes);

 private:
  struct Entry {
    int64_t pid = 0;
    int32_t descriptor = 0;
    uint64_t nonce = 0;
    std::shared_ptr<SharedView> view;
  };
  std::list<Entry> entries_;  // most recent first
};

}  // namespace tessera
