#include "common/philox.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

namespace tessera {
namespace {

// Random123 1.14, tests/kat_vectors, "philox4x32 10".
TEST(Philox, KnownAnswersOfRandom123) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (Philox4{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(philox4x32_10({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Philox4{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(philox4x32_10({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
            (Philox4{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

// The layout of key and counter is a rule of function.version.
TEST(Philox, StreamLaysOutKeyAndCounterAsDocumented) {
  const uint64_t seed = 0x1122334455667788u, index = 0x99aabbccddeeff01u;
  PhiloxStream stream(seed, Purpose::kMaskPlace, index, 77);
  for (uint32_t draw = 0; draw < 3; ++draw)
    for (const uint32_t word : philox4x32_10({draw, 0xddeeff01u, 0x99aabbccu, 77}, {0x55667788u, 0x11223344u ^ 4u})) EXPECT_EQ(stream.next_u32(), word);
}

TEST(Philox, EveryPartOfTheKeySeparatesStreams) {
  std::set<uint64_t> first;
  int streams = 0;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 31, uint64_t{1} << 63})
    for (const Purpose purpose : {Purpose::kCrop, Purpose::kFlip, Purpose::kMaskSize, Purpose::kShuffle, Purpose::kInit})
      for (const uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32})
        for (const uint32_t epoch : {0u, 1u}) first.insert(PhiloxStream(seed, purpose, index, epoch).next_u64()), ++streams;
  EXPECT_EQ(first.size(), size_t(streams));
}

TEST(Philox, NumbersStayInTheirRanges) {
  PhiloxStream stream(3, Purpose::kProbe, 0, 0);
  double sum = 0;
  std::set<uint32_t> seen;
  for (int i = 0; i < 20000; ++i) {
    const float f = stream.next_float();
    const double d = stream.next_double();
    ASSERT_TRUE(f >= 0 && f < 1 && d >= 0 && d < 1);
    sum += d;
    const uint32_t below = stream.next_below(7);
    ASSERT_LT(below, 7u);
    seen.insert(below);
    ASSERT_EQ(stream.next_below(1), 0u);
  }
  EXPECT_EQ(seen.size(), 7u);
  EXPECT_NEAR(sum / 20000, 0.5, 0.02);
}

}  // namespace
}  // namespace tessera
