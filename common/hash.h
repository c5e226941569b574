// XXH3-128 for files, frames, samples and identities: detects damage, is no defence against an attacker.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "common/result.h"

namespace tessera {

// 128 bits; high and low as in XXH128_hash_t. Printed as 32 hex digits, high first (XXH's canonical form).
struct Hash128 {
  uint64_t high = 0;
  uint64_t low = 0;
  auto operator<=>(const Hash128&) const = default;
};

std::string to_hex(const Hash128& hash);
// Error: kFixData if text is not 32 hex digits.
Result<Hash128> hash_from_hex(std::string_view text);

Hash128 hash_bytes(const void* data, size_t size_bytes);
inline Hash128 hash_bytes(std::string_view bytes) { return hash_bytes(bytes.data(), bytes.size()); }
uint64_t hash64_bytes(std::string_view bytes);

// Hash of a whole file, read in 1 MiB pieces. Error: kIo.
Result<Hash128> hash_file(const std::string& path);

// Streaming form. add() of integers is little-endian, fixed width; strings are preceded by their length (u64), so that
// a sequence of fields has one reading.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void add_bytes(const void* data, size_t size_bytes);
  void add_u64(uint64_t value) { add_bytes(&value, sizeof value); }
  void add_i64(int64_t value) { add_u64(uint64_t(value)); }
  void add_u32(uint32_t value) { add_bytes(&value, sizeof value); }
  void add_hash(const Hash128& value) { add_u64(value.high), add_u64(value.low); }
  void add_string(std::string_view text) { add_u64(text.size()), add_bytes(text.data(), text.size()); }
  Hash128 finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera
