// The digests of INTERFACES.md: how two processes find out that they hold the same bits.
//
// State digest: two 64-bit lanes, each the sum modulo 2^64, over every element of every tensor, of
//   mix64(seed + (index in the whole tensor << 32 | fp32 bits)),  seed = lane seed of (role, tensor name).
// A sum, so it does not depend on slicing, order, device or file count. An index above 2^32 wraps into the seed's word.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/hash.h"

namespace tessera {

struct StateDigest {
  uint64_t a = 0;
  uint64_t b = 0;
  bool operator==(const StateDigest&) const = default;
  StateDigest& operator+=(const StateDigest& other) {
    a += other.a;
    b += other.b;
    return *this;
  }
};
std::string to_hex(const StateDigest& digest);  // 32 hex digits, lane a first
Result<StateDigest> state_digest_from_hex(std::string_view text);

struct LaneSeeds {
  uint64_t a = 0;
  uint64_t b = 0;
};

inline uint64_t mix64(uint64_t z) {  // splitmix64's finaliser
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// name: the tensor's full name, which holds its role: "context_encoder.blocks.0.attn.qkv.weight",
// "optimizer.exp_avg.predictor.mask_token", "gradient.<name>".
LaneSeeds lane_seeds(std::string_view name);

// Contribution of elements [first, first + count) of a tensor.
StateDigest digest_elements(const float* values, int64_t count, int64_t first, LaneSeeds seeds);
// Contribution of an integer scalar such as Adam's step count.
StateDigest digest_scalar(uint64_t value, LaneSeeds seeds);

// Chain over steps: d = XXH3-128(d_before, step's digest).
Hash128 chain(const Hash128& before, const StateDigest& step_digest);

// A tile's digest (XXH3-128 over header fields, then pixels) as a term of the step's batch digest: two 64-bit lanes.
inline StateDigest as_lanes(const Hash128& tile_digest) { return {tile_digest.high, tile_digest.low}; }

}  // namespace tessera
