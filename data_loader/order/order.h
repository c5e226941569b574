// Which sample stands at which position of an epoch, and which positions a step's tile covers. Pure; the same on every
// loader.
#pragma once

#include <cstdint>
#include <vector>

#include "common/config.h"
#include "common/ids.h"

namespace tessera::data {

// Bijection of [0, count): a balanced Feistel network over Philox on the next even power of two, walked until it lands
// inside (Black and Rogaway, "Ciphers with arbitrary finite domains"). O(1) memory.
// purpose stream: (seed, purpose, round and half, salt).
class Permutation {
 public:
  Permutation(uint64_t count, uint64_t seed, uint32_t purpose, uint32_t salt);
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t once(uint64_t index) const;
  uint64_t count_;
  uint64_t seed_;
  uint32_t purpose_, salt_;
  int half_bits_;
};

// The order of one epoch. shuffle global: one permutation of all samples. shuffle block: the manifest's blocks are
// permuted; each window of kWindowBlocks blocks in that order has its samples permuted, so that few shards are open.
class EpochOrder {
 public:
  static constexpr int kWindowBlocks = 16;
  // block_first: first sample of each block, ascending, starting with 0 (used by shuffle block only).
  EpochOrder(const FunctionConfig& function, int64_t sample_count, const std::vector<SampleId>& block_first, int64_t epoch);
  SampleId sample_at(int64_t position) const;

 private:
  struct Window {
    int64_t first_position = 0;
    std::vector<std::pair<int64_t, SampleId>> blocks;  // (first index within the window, first sample)
    int64_t size = 0;
  };
  uint64_t seed_;
  uint32_t epoch_;
  Permutation all_;
  std::vector<Window> windows_;  // empty for global
};

// Positions of a tile: step k, tile t cover [first, first + tile_size) of epoch k / steps_per_epoch.
struct TilePlace {
  int64_t epoch = 0;
  int64_t first_position = 0;
};
TilePlace tile_place(const FunctionConfig& function, int64_t steps_per_epoch, Step step, TileIndex tile);

}  // namespace tessera::data
