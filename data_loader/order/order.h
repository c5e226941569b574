// Which sample stands at which position of an epoch, and which positions a step's tile covers. Pure; the same on every
// loader. Test: tests/unit/data_loader/order_test.cpp
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "common/config.h"
#include "common/ids.h"
#include "common/philox.h"

namespace tessera::data {

// Bijection of [0, count), 1 <= count <= 2^40: a balanced Feistel network over Philox on the next even power of two,
// walked until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains"). O(1) memory, under a
// microsecond per value. Round words: Philox key (seed, purpose), counter (round, half, stream, epoch).
class Permutation {
 public:
  Permutation(uint64_t count, uint64_t seed, Purpose purpose, uint32_t epoch, uint32_t stream = 0);
  uint64_t operator()(uint64_t index) const;
  uint64_t inverse(uint64_t value) const;

 private:
  uint64_t half_word(uint32_t round, uint64_t half) const;
  uint64_t forward(uint64_t index) const;
  uint64_t backward(uint64_t index) const;
  uint64_t count_;
  std::array<uint32_t, 2> key_;
  uint32_t epoch_, stream_;
  int half_bits_;
};

// The order of one epoch. Immutable: share it among threads.
//   shuffle global  one permutation of all samples.
//   shuffle block   the manifest's blocks are permuted (kShuffleBlocks); each window of kWindowBlocks blocks in that order
//                   has its samples permuted (kShuffle, stream = 1 + window), so that few shards are open at a time.
class EpochOrder {
 public:
  static constexpr int kWindowBlocks = 16;
  // block_first: first sample of each block, ascending, starting with 0 (used by shuffle block only). sample_count >= 1.
  EpochOrder(const FunctionConfig& function, int64_t sample_count, const std::vector<SampleId>& block_first, int64_t epoch);
  SampleId sample_at(int64_t position) const;    // position in [0, sample_count); O(1), or O(log blocks)
  int64_t position_of(SampleId sample) const;  // its inverse; O(blocks) for shuffle block

 private:
  struct Window {
    int64_t first_position = 0;
    std::vector<std::pair<int64_t, SampleId>> blocks;  // (first index within the window, first sample)
    int64_t size = 0;
  };
  Permutation within(size_t window) const;

  uint64_t seed_;
  uint32_t epoch_;
  Permutation all_;
  std::vector<Window> windows_;  // empty for global
};

// Positions of a tile: step k, tile t cover [first, first + tile_size) of epoch k / steps_per_epoch (run_length's, >= 1).
// No step spans two epochs; positions from steps_per_epoch x global batch on are the epoch's tail, never trained on.
struct TilePlace {
  int64_t epoch = 0;
  int64_t first_position = 0;
};
TilePlace tile_place(const FunctionConfig& function, int64_t steps_per_epoch, Step step, TileIndex tile);

// The samples of a tile, in its order. `order` must be that of the place's epoch.
std::vector<SampleId> tile_samples(const FunctionConfig& function, const EpochOrder& order, const TilePlace& place);

}  // namespace tessera::data
