#include "common/hash.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <xxhash.h>

#include "scratch.h"

namespace tessera {
namespace {

// The vector of xxHash's own documentation for empty input, and the library as the oracle for others.
TEST(Hash, IsXxh3InCanonicalForm) {
  EXPECT_EQ(to_hex(hash_bytes("")), "99aa06d3014798d86001c324468d497f");
  const std::string text = "Tessera: one tile of a mosaic";
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(text.data(), text.size()));
  std::string hex;
  for (const unsigned char byte : canonical.digest) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", byte);
    hex += two;
  }
  EXPECT_EQ(to_hex(hash_bytes(text)), hex);
}

TEST(Hash, HexRoundTripsAndRefusesOtherText) {
  const Hash128 hash{0x0123456789abcdefu, 0xfedcba9876543210u};
  EXPECT_EQ(to_hex(hash), "0123456789abcdeffedcba9876543210");
  ASSERT_TRUE(hash_from_hex(to_hex(hash)));
  EXPECT_EQ(*hash_from_hex(to_hex(hash)), hash);
  EXPECT_EQ(*hash_from_hex("0123456789ABCDEFFEDCBA9876543210"), hash);
  for (const char* wrong : {"", "0123", "0123456789abcdeffedcba987654321g", "0123456789abcdeffedcba98765432100", " 123456789abcdeffedcba987654321 "}) {
    const auto result = hash_from_hex(wrong);
    ASSERT_FALSE(result) << wrong;
    EXPECT_EQ(result.error().code, ErrorCode::kFixData);
    EXPECT_NE(result.error().message.find("32 hex digits"), std::string::npos);
  }
}

TEST(Hash, StreamDoesNotDependOnHowItIsCut) {
  std::string bytes;
  for (int i = 0; i < 5000; ++i) bytes += char(i * 37 ^ i >> 3);
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{256}, size_t{4999}}) {
    Hasher hasher;
    for (size_t at = 0; at < bytes.size(); at += piece) hasher.add_bytes(bytes.data() + at, std::min(piece, bytes.size() - at));
    EXPECT_EQ(hasher.finish(), hash_bytes(bytes)) << piece;
  }
}

TEST(Hash, FieldsHaveOneReading) {
  const auto of = [](const std::string& a, const std::string& b) {
    Hasher hasher;
    hasher.add_string(a), hasher.add_string(b);
    return hasher.finish();
  };
  EXPECT_NE(of("ab", "c"), of("a", "bc"));
  EXPECT_NE(of("", "abc"), of("abc", ""));
  Hasher integers, bytes;
  integers.add_u32(0x04030201u), integers.add_u64(0x0c0b0a0908070605u);
  bytes.add_bytes("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c", 12);
  EXPECT_EQ(integers.finish(), bytes.finish());
}

TEST(Hash, OfAFile) {
  const test::Scratch folder;
  const std::string content((size_t{1} << 20) + 17, 'x');
  std::ofstream(folder / "big", std::ios::binary) << content;
  std::ofstream(folder / "empty");
  EXPECT_EQ(hash_file(folder / "big").value(), hash_bytes(content));
  EXPECT_EQ(hash_file(folder / "empty").value(), hash_bytes(""));
  for (const std::string& path : {folder / "none", folder.path()}) {
    const auto result = hash_file(path);
    ASSERT_FALSE(result) << path;
    EXPECT_EQ(result.error().code, ErrorCode::kIo);
    EXPECT_NE(result.error().message.find(path), std::string::npos);
  }
}

}  // namespace
}  // namespace tessera
