#include "data_loader/server/shared_slots.h"

#include <algorithm>

namespace tessera::data {

Result<std::shared_ptr<SharedBuffer>> SharedSlots::take(int64_t size_bytes) {
  std::shared_ptr<SharedBuffer> buffer;
  {
    std::lock_guard lock(idle_->mutex);
    auto& idle = idle_->buffers;
    std::erase_if(idle, [&](const auto& b) { return b->size() != size_bytes; });  // of another function
    if (!idle.empty()) buffer = std::move(idle.back()), idle.pop_back();
  }
  if (!buffer) {
    TESSERA_ASSIGN(buffer, SharedBuffer::create(size_bytes));
  }
  SharedBuffer* raw = buffer.get();
  return std::shared_ptr<SharedBuffer>(raw, [buffer = std::move(buffer), idle = std::weak_ptr(idle_)](SharedBuffer*) mutable {
    const auto home = idle.lock();
    if (!home) return;
    std::lock_guard lock(home->mutex);
    if (int64_t(home->buffers.size() + 1) * buffer->size() <= std::max(kIdleBytes, 2 * buffer->size())) home->buffers.push_back(std::move(buffer));
  });
}

}  // namespace tessera::data
