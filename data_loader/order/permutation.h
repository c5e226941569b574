// A keyed permutation of [0, size) in constant memory: a Feistel network over the next power of two with Philox as the
// round function, walked along its cycles back into the range. Pure; about half a microsecond per value.
#pragma once

#include <cstdint>

#include "common/philox.h"

namespace tessera {

class Permutation {
 public:
  // size in [1, 2^40]. The same (size, seed, purpose, epoch, stream) gives the same permutation; streams (below 2^16)
  // are independent permutations of one epoch.
  Permutation(int64_t size, uint64_t seed, Purpose purpose, uint32_t epoch, uint32_t stream = 0);

  int64_t size() const { return size_; }
  int64_t at(int64_t position) const;      // position in [0, size)
  int64_t position_of(int64_t value) const;  // at(position_of(v)) == v

 private:
  uint64_t forward(uint64_t value) const;
  uint64_t backward(uint64_t value) const;
  uint64_t round_word(int round, uint64_t half) const;

  int64_t size_;
  std::array<uint32_t, 2> key_;
  uint32_t epoch_, stream_;
  int low_bits_, high_bits_;
};

}  // namespace tessera
