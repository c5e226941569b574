#include "worker/collective/shared_arena.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace tessera::collective {
namespace {

constexpr size_t kPage = 4096;

}  // namespace

std::shared_ptr<void> SharedArena::allocate(int64_t size_bytes) {
  if (auto made = SharedBuffer::create(size_bytes)) {
    std::lock_guard lock(mutex_);
    std::erase_if(buffers_, [](const auto& buffer) { return buffer.expired(); });
    buffers_.push_back(*made);
    return {*made, (*made)->data()};
  }
  const size_t size = (size_t(size_bytes) + kPage - 1) / kPage * kPage;
  void* memory = std::aligned_alloc(kPage, std::max(size, kPage));
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0, size);
  return {memory, std::free};
}

std::optional<SharedPlace> SharedArena::locate(const void* data, int64_t size_bytes) const {
  const auto* at = static_cast<const uint8_t*>(data);
  std::lock_guard lock(mutex_);
  for (const auto& weak : buffers_)
    if (const auto buffer = weak.lock(); buffer && at >= buffer->data() && at + size_bytes <= buffer->data() + buffer->size())
      return SharedPlace{buffer->nonce(), buffer->size(), at - buffer->data(), buffer->descriptor()};
  return std::nullopt;
}

}  // namespace tessera::collective
