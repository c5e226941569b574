// Memory for buffers that ranks on the same host may read in place: what lies here need not be sent. Anonymous memfds (common/shared_memory.h):
// nothing is left behind, kill -9 included. Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "common/shared_memory.h"

namespace tessera::collective {

// Where a buffer is, for who opens it in another process. Fixed layout on the wire.
struct SharedPlace {
  uint64_t nonce = 0;
  int64_t size_bytes = 0;    // of the whole memory
  int64_t offset_bytes = 0;  // of the buffer in it
  int64_t descriptor = -1;
};

class SharedArena {
 public:
  // Zeroed, on a page boundary; lives as long as somebody holds it. Where no memfd is to be had it is this process's own
  // memory, which others get copies of.
  std::shared_ptr<void> allocate(int64_t size_bytes);
  // nullopt: not, or not all of it, in this arena.
  std::optional<SharedPlace> locate(const void* data, int64_t size_bytes) const;

 private:
  mutable std::mutex mutex_;  // buffers are made on one thread and looked up on another
  std::vector<std::weak_ptr<SharedBuffer>> buffers_;
};

}  // namespace tessera::collective
