#include "common/digest.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace tessera {
namespace {

std::vector<float> values_of(size_t count, uint32_t seed) {
  std::mt19937 draw(seed);
  std::vector<float> values(count);
  for (float& value : values) value = std::bit_cast<float>(uint32_t(draw()));
  return values;
}

TEST(Digest, AnySlicingInAnyOrderGivesTheSameSum) {
  std::mt19937 draw(1);
  const LaneSeeds seeds = lane_seeds("context_encoder.blocks.0.attn.qkv.weight");
  for (int round = 0; round < 300; ++round) {
    const auto values = values_of(1 + draw() % 700, uint32_t(round));
    const int64_t count = int64_t(values.size());
    const StateDigest whole = digest_elements(values.data(), count, 0, seeds);
    std::vector<std::pair<int64_t, int64_t>> slices;
    for (int64_t at = 0; at < count;) {
      const int64_t length = std::min<int64_t>(count - at, draw() % 97);
      slices.emplace_back(at, length);
      at += length;
    }
    std::shuffle(slices.begin(), slices.end(), draw);
    StateDigest sum;
    for (const auto& [at, length] : slices) sum += digest_elements(values.data() + at, length, at, seeds);
    ASSERT_EQ(sum, whole) << "round " << round;
  }
}

// The definition of common/digest.h, written out.
TEST(Digest, IsTheDocumentedSum) {
  const auto mix = [](uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  };
  const auto values = values_of(33, 5);
  const LaneSeeds seeds = lane_seeds("predictor.mask_token");
  const int64_t first = (int64_t{1} << 31) + 5;
  StateDigest expected;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint64_t word = uint64_t(first + int64_t(i)) << 32 | std::bit_cast<uint32_t>(values[i]);
    expected += StateDigest{mix(seeds.a + word), mix(seeds.b + word)};
  }
  EXPECT_EQ(digest_elements(values.data(), 33, first, seeds), expected);
}

TEST(Digest, SeesEveryBitPlaceNameAndSign) {
  auto values = values_of(64, 9);
  const LaneSeeds seeds = lane_seeds("a");
  const StateDigest whole = digest_elements(values.data(), 64, 0, seeds);
  for (size_t i = 0; i < values.size(); ++i)
    for (int bit = 0; bit < 32; ++bit) {
      auto changed = values;
      changed[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(values[i]) ^ 1u << bit);
      ASSERT_NE(digest_elements(changed.data(), 64, 0, seeds), whole) << i << " bit " << bit;
    }
  auto swapped = values;
  std::swap(swapped[3], swapped[40]);
  EXPECT_NE(digest_elements(swapped.data(), 64, 0, seeds), whole);
  EXPECT_NE(digest_elements(values.data(), 64, 1, seeds), whole);
  EXPECT_NE(digest_elements(values.data(), 64, 0, lane_seeds("b")), whole);
  const float zero = 0.0f, minus_zero = -0.0f;
  EXPECT_NE(digest_elements(&zero, 1, 0, seeds), digest_elements(&minus_zero, 1, 0, seeds));
  EXPECT_NE(digest_scalar(1, seeds), digest_scalar(2, seeds));
  EXPECT_NE(whole.a, whole.b);
}

TEST(Digest, ChainDependsOnOrder) {
  const StateDigest one{1, 2}, two{3, 4};
  EXPECT_NE(chain(chain({}, one), two), chain(chain({}, two), one));
  EXPECT_NE(chain({}, one), chain({}, StateDigest{2, 1}));
  Hasher hasher;
  for (const uint64_t word : {7ull, 8ull, 1ull, 2ull}) hasher.add_u64(word);
  EXPECT_EQ(chain({7, 8}, one), hasher.finish());
}

TEST(Digest, HexRoundTrips) {
  const StateDigest digest{0xdeadbeef00000001u, 2};
  EXPECT_EQ(to_hex(digest), "deadbeef000000010000000000000002");
  EXPECT_EQ(state_digest_from_hex(to_hex(digest)).value(), digest);
  EXPECT_FALSE(state_digest_from_hex("deadbeef"));
}

}  // namespace
}  // namespace tessera
