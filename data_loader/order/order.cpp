#include "data_loader/order/order.h"

#include <algorithm>
#include <bit>

#include "common/result.h"

namespace tessera::data {
namespace {

constexpr uint32_t kRounds = 6;
constexpr int kMinHalfBits = 3;  // fewer give too few different permutations of a handful of samples

int half_bits_of(uint64_t count) { return std::max(kMinHalfBits, (int(std::bit_width(count - 1)) + 1) / 2); }

}  // namespace

Permutation::Permutation(uint64_t count, uint64_t seed, Purpose purpose, uint32_t epoch, uint32_t stream)
    : count_(count), key_{uint32_t(seed), uint32_t(seed >> 32) ^ uint32_t(purpose)}, epoch_(epoch), stream_(stream), half_bits_(half_bits_of(count)) {
  TESSERA_CHECK(count >= 1 && count <= uint64_t{1} << 40, "permutation of " + std::to_string(count));
}

uint64_t Permutation::half_word(uint32_t round, uint64_t half) const {
  return philox4x32_10({round, uint32_t(half), stream_, epoch_}, key_)[0] & ((uint32_t{1} << half_bits_) - 1);
}

uint64_t Permutation::forward(uint64_t index) const {
  uint64_t left = index >> half_bits_, right = index & ((uint64_t{1} << half_bits_) - 1);
  for (uint32_t round = 0; round < kRounds; ++round) {
    const uint64_t next = left ^ half_word(round, right);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

uint64_t Permutation::backward(uint64_t index) const {
  uint64_t left = index >> half_bits_, right = index & ((uint64_t{1} << half_bits_) - 1);
  for (uint32_t round = kRounds; round-- > 0;) {
    const uint64_t before = right ^ half_word(round, left);
    right = left;
    left = before;
  }
  return left << half_bits_ | right;
}

// The walks end: an index's cycle under a bijection of the power of two leads back to the index, which is inside.
uint64_t Permutation::operator()(uint64_t index) const {
  TESSERA_CHECK(index < count_, "position " + std::to_string(index) + " of " + std::to_string(count_));
  do index = forward(index);
  while (index >= count_);
  return index;
}

uint64_t Permutation::inverse(uint64_t value) const {
  TESSERA_CHECK(value < count_, "value " + std::to_string(value) + " of " + std::to_string(count_));
  do value = backward(value);
  while (value >= count_);
  return value;
}

EpochOrder::EpochOrder(const FunctionConfig& function, int64_t sample_count, const std::vector<SampleId>& block_first, int64_t epoch)
    : seed_(uint64_t(function.seed)), epoch_(uint32_t(epoch)), all_(uint64_t(sample_count), seed_, Purpose::kShuffle, epoch_) {
  if (function.data.shuffle == "global") return;
  const int64_t blocks = int64_t(block_first.size());
  TESSERA_CHECK(blocks > 0 && block_first[0] == 0, "block table without block 0");
  const Permutation order(uint64_t(blocks), seed_, Purpose::kShuffleBlocks, epoch_);
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

Permutation EpochOrder::within(size_t window) const {
  return Permutation(uint64_t(windows_[window].size), seed_, Purpose::kShuffle, epoch_, uint32_t(window) + 1);
}

SampleId EpochOrder::sample_at(int64_t position) const {
  if (windows_.empty()) return SampleId(all_(uint64_t(position)));
  auto window = std::upper_bound(windows_.begin(), windows_.end(), position, [](int64_t p, const Window& w) { return p < w.first_position; }) - 1;
  const int64_t inside = int64_t(within(size_t(window - windows_.begin()))(uint64_t(position - window->first_position)));
  const auto block = std::upper_bound(window->blocks.begin(), window->blocks.end(), inside, [](int64_t p, const auto& b) { return p < b.first; }) - 1;
  return block->second + (inside - block->first);
}

int64_t EpochOrder::position_of(SampleId sample) const {
  if (windows_.empty()) return int64_t(all_.inverse(uint64_t(sample)));
  for (size_t w = 0; w < windows_.size(); ++w)
    for (size_t b = 0; b < windows_[w].blocks.size(); ++b) {
      const auto& [begin, first] = windows_[w].blocks[b];
      const int64_t end = b + 1 < windows_[w].blocks.size() ? windows_[w].blocks[b + 1].first : windows_[w].size;
      if (sample >= first && sample - first < end - begin) return windows_[w].first_position + int64_t(within(w).inverse(uint64_t(begin + sample - first)));
    }
  TESSERA_CHECK(false, "sample " + std::to_string(sample) + " is in no block");
  return -1;
}

TilePlace tile_place(const FunctionConfig& function, int64_t steps_per_epoch, Step step, TileIndex tile) {
  return {step / steps_per_epoch, (step % steps_per_epoch) * function.batch.global() + int64_t{tile} * function.batch.tile_size};
}

std::vector<SampleId> tile_samples(const FunctionConfig& function, const EpochOrder& order, const TilePlace& place) {
  std::vector<SampleId> samples(size_t(function.batch.tile_size), 0);
  for (size_t i = 0; i < samples.size(); ++i) samples[i] = order.sample_at(place.first_position + int64_t(i));
  return samples;
}

}  // namespace tessera::data
