#include "common/hash.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>
#include <xxhash.h>

namespace tessera {

struct Hasher::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

namespace {
Hash128 from_xxh(XXH128_hash_t h) { return {h.high64, h.low64}; }
}  // namespace

Hasher::Hasher() : state_(std::make_unique<State>()) { XXH3_128bits_reset(state_->xxh); }
Hasher::~Hasher() = default;
void Hasher::add_bytes(const void* data, size_t size_bytes) {
  if (size_bytes > 0) XXH3_128bits_update(state_->xxh, data, size_bytes);
}
Hash128 Hasher::finish() const { return from_xxh(XXH3_128bits_digest(state_->xxh)); }

Hash128 hash_bytes(const void* data, size_t size_bytes) { return from_xxh(XXH3_128bits(data, size_bytes)); }
uint64_t hash64_bytes(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string to_hex(const Hash128& hash) {
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(hash.high),
                static_cast<unsigned long long>(hash.low));
  return text;
}

Result<Hash128> hash_from_hex(std::string_view text) {
  Hash128 out;
  if (text.size() != 32) return fail(ErrorCode::kFixData, "'" + std::string(text) + "' is no 128-bit hash: 32 hex digits expected");
  for (size_t i = 0; i < 32; ++i) {
    const char c = text[i];
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return fail(ErrorCode::kFixData, "'" + std::string(text) + "' is no 128-bit hash: 32 hex digits expected");
    uint64_t& half = i < 16 ? out.high : out.low;
    half = half << 4 | uint64_t(digit);
  }
  return out;
}

Result<Hash128> hash_file(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return fail(ErrorCode::kIo, "cannot read " + path + ": " + std::strerror(errno));
  Hasher hasher;
  std::vector<char> buffer(size_t{1} << 20);
  size_t got;
  while ((got = std::fread(buffer.data(), 1, buffer.size(), file)) > 0) hasher.add_bytes(buffer.data(), got);
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) return fail(ErrorCode::kIo, "cannot read " + path + ": " + std::strerror(EIO));
  return hasher.finish();
}

}  // namespace tessera
