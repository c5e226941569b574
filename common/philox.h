// Counter-based randomness: every random number of a run is a function of (seed, purpose, epoch or step, index, draw).
// Never of a process, thread, rank or arrival order.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11; same output as Random123):
//   key     = (seed low 32, seed high 32 XOR purpose)
//   counter = (draw, index low 32, index high 32, epoch or step)
// Each counter gives four 32-bit words. A change of any rule here raises function.version.
#pragma once

#include <array>
#include <cstdint>

namespace tessera {

// The table of purposes. Numbers are part of the function: add, never renumber.
enum class Purpose : uint32_t {
  kCrop = 1,           // index = sample id, fourth word = epoch
  kFlip = 2,           // index = sample id, fourth word = epoch
  kMaskSize = 3,       // index = mask group, fourth word = step
  kMaskPlace = 4,      // index = image within the step (mask group * images per group + i), fourth word = step
  kMaskTruncate = 5,   // index = image within the step, fourth word = step; uniform mode's random subset
  kShuffle = 6,        // index = position / round of the permutation, fourth word = epoch
  kShuffleBlocks = 7,  // the permutation of blocks for shuffle: block, fourth word = epoch
  kInit = 8,           // index = hash of the parameter's name XOR element pair; fourth word 0
  kProbe = 9,          // evaluation: subsets and initial values, never training
  kScenes = 10,        // procedural dataset: index = sample, fourth word 0
  kDecoder = 11,       // evaluation: noise of the picture decoder
  kChaos = 12,         // `tessera chaos`: who is hit and when, never training
};

using Philox4 = std::array<uint32_t, 4>;

inline Philox4 philox4x32_10(Philox4 counter, std::array<uint32_t, 2> key) {
  constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u, kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{kMul0} * counter[0], p1 = uint64_t{kMul1} * counter[2];
    counter = {uint32_t(p1 >> 32) ^ counter[1] ^ key[0], uint32_t(p1), uint32_t(p0 >> 32) ^ counter[3] ^ key[1], uint32_t(p0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// A stream of 32-bit words for one (seed, purpose, epoch or step, index): words of draw 0, then of draw 1, ...
class PhiloxStream {
 public:
  PhiloxStream(uint64_t seed, Purpose purpose, uint64_t index, uint32_t epoch_or_step)
      : key_{uint32_t(seed), uint32_t(seed >> 32) ^ uint32_t(purpose)},
        counter_{0, uint32_t(index), uint32_t(index >> 32), epoch_or_step} {}

  uint32_t next_u32() {
    if (used_ == 4) {
      words_ = philox4x32_10(counter_, key_);
      ++counter_[0];
      used_ = 0;
    }
    return words_[used_++];
  }
  uint64_t next_u64() {
    const uint64_t low = next_u32();
    return low | uint64_t{next_u32()} << 32;
  }
  // In [0, 1): the low 24 bits of a word / 2^24, exactly representable in float (torch's own float rule).
  float next_float() { return float(next_u32() & 0xFFFFFFu) * 0x1p-24f; }
  // In [0, 1) with 53 bits.
  double next_double() { return double(next_u64() >> 11) * 0x1p-53; }
  // In [0, range), range >= 1, without bias worth a name (64-bit multiply-shift of one 32-bit word for range < 2^32).
  uint32_t next_below(uint32_t range) { return uint32_t(uint64_t{next_u32()} * range >> 32); }

 private:
  std::array<uint32_t, 2> key_;
  Philox4 counter_;
  Philox4 words_{};
  int used_ = 4;
};

}  // namespace tessera
