#include "data_loader/order/order.h"

#include <algorithm>
#include <bit>

#include "common/philox.h"
#include "common/result.h"

namespace tessera::data {
namespace {
constexpr int kRounds = 6;
}

Permutation::Permutation(uint64_t count, uint64_t seed, uint32_t purpose, uint32_t salt)
    : count_(count), seed_(seed), purpose_(purpose), salt_(salt), half_bits_(std::max(1, (int(std::bit_width(count > 1 ? count - 1 : uint64_t{1})) + 1) / 2)) {}

uint64_t Permutation::once(uint64_t index) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = index >> half_bits_, right = index & mask;
  for (uint32_t round = 0; round < kRounds; ++round) {
    const Philox4 words = philox4x32_10({round, uint32_t(right), uint32_t(right >> 32), salt_}, {uint32_t(seed_), uint32_t(seed_ >> 32) ^ purpose_});
    const uint64_t mixed = words[0] | uint64_t{words[1]} << 32;
    const uint64_t next = left ^ (mixed & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

uint64_t Permutation::operator()(uint64_t index) const {
  if (count_ <= 1) return index;
  do index = once(index);
  while (index >= count_);
  return index;
}

EpochOrder::EpochOrder(const FunctionConfig& function, int64_t sample_count, const std::vector<SampleId>& block_first, int64_t epoch)
    : seed_(uint64_t(function.seed)), epoch_(uint32_t(epoch)), all_(uint64_t(sample_count), seed_, uint32_t(Purpose::kShuffle), epoch_) {
  if (function.data.shuffle == "global") return;
  const int64_t blocks = int64_t(block_first.size());
  const Permutation order(uint64_t(blocks), seed_, uint32_t(Purpose::kShuffleBlocks), epoch_);
  int64_t position = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    if (i % kWindowBlocks == 0) windows_.push_back({position, {}, 0});
    const int64_t block = int64_t(order(uint64_t(i)));
    const SampleId first = block_first[size_t(block)], last = block + 1 < blocks ? block_first[size_t(block) + 1] : sample_count;
    Window& window = windows_.back();
    window.blocks.emplace_back(window.size, first);
    window.size += last - first;
    position += last - first;
  }
}

SampleId EpochOrder::sample_at(int64_t position) const {
  if (windows_.empty()) return SampleId(all_(uint64_t(position)));
  auto window = std::upper_bound(windows_.begin(), windows_.end(), position, [](int64_t p, const Window& w) { return p < w.first_position; }) - 1;
  const uint32_t salt = epoch_;
  const uint64_t seed = seed_ ^ (uint64_t(window - windows_.begin()) + 1) * 0x9E3779B97F4A7C15ull;
  const int64_t inside = int64_t(Permutation(uint64_t(window->size), seed, uint32_t(Purpose::kShuffle), salt)(uint64_t(position - window->first_position)));
  const auto block = std::upper_bound(window->blocks.begin(), window->blocks.end(), inside, [](int64_t p, const auto& b) { return p < b.first; }) - 1;
  return block->second + (inside - block->first);
}

TilePlace tile_place(const FunctionConfig& function, int64_t steps_per_epoch, Step step, TileIndex tile) {
  return {step / steps_per_epoch, (step % steps_per_epoch) * function.batch.global() + int64_t{tile} * function.batch.tile_size};
}

}  // namespace tessera::data
