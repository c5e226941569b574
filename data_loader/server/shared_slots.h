// Buffers of shared memory for tiles on their way to trainers of this host. A slot that is let go is used again for the next
// tile of its size, since fresh pages cost more than the copy; a few are kept idle, the rest go back to the system.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "common/shared_memory.h"

namespace tessera::data {

// Any thread. Slots may outlive it.
class SharedSlots {
 public:
  static constexpr int64_t kIdleBytes = int64_t{64} << 20;
  // A slot of exactly this size; its content is whatever. It comes back when the last pointer to it goes. Error: kIo.
  Result<std::shared_ptr<SharedBuffer>> take(int64_t size_bytes);

 private:
  struct Idle {
    std::mutex mutex;
    std::vector<std::shared_ptr<SharedBuffer>> buffers;
  };
  std::shared_ptr<Idle> idle_ = std::make_shared<Idle>();
};

}  // namespace tessera::data
