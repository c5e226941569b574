#include "common/digest.h"

#include <bit>

namespace tessera {

std::string to_hex(const StateDigest& digest) { return to_hex(Hash128{digest.a, digest.b}); }

Result<StateDigest> state_digest_from_hex(std::string_view text) {
  TESSERA_ASSIGN(const Hash128 hash, hash_from_hex(text));
  return StateDigest{hash.high, hash.low};
}

LaneSeeds lane_seeds(std::string_view name) {
  const uint64_t h = hash64_bytes(name);
  return {mix64(h), mix64(h ^ 0x5bd1e995b7e15163ull)};
}

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
StateDigest digest_elements(const float* values, int64_t count, int64_t first, LaneSeeds seeds) {
  uint64_t a = 0, b = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t word = uint64_t(first + i) << 32 | std::bit_cast<uint32_t>(values[i]);
    a += mix64(seeds.a + word);
    b += mix64(seeds.b + word);
  }
  return {a, b};
}

StateDigest digest_scalar(uint64_t value, LaneSeeds seeds) {
  return {mix64(seeds.a + mix64(value)), mix64(seeds.b + mix64(value))};
}

Hash128 chain(const Hash128& before, const StateDigest& step_digest) {
  Hasher hasher;
  hasher.add_hash(before);
  hasher.add_u64(step_digest.a);
  hasher.add_u64(step_digest.b);
  return hasher.finish();
}

}  // namespace tessera
