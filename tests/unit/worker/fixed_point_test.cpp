#include "worker/collective/fixed_point.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace tessera::collective::fixed_point {
namespace {

std::vector<float> draw(size_t n, double scale, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, scale);
  std::vector<float> out(n);
  for (float& x : out) x = float(normal(random));
  return out;
}

TEST(FixedPoint, RoundsToNearestEvenAndAdds) {
  const std::vector<float> g{0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.49f, 3.0f, -0.0f, 7.25f};
  std::vector<int32_t> sum(g.size(), 99);
  EXPECT_EQ(add_tile(g.data(), 9, 0, 1000, true, sum.data()), Fit::kFits);
  EXPECT_EQ(sum, (std::vector<int32_t>{0, 2, 2, 0, -2, 0, 3, 0, 7}));
  EXPECT_EQ(add_tile(g.data(), 9, 1, 1000, false, sum.data()), Fit::kFits);
  EXPECT_EQ(sum, (std::vector<int32_t>{1, 5, 7, -1, -5, 1, 9, 0, 21}));
  std::vector<float> back(9);
  to_floats(sum.data(), 9, 2, back.data());
  EXPECT_EQ(back[8], 5.25f);
}

// The claim: any order and any split of the tiles give the same sums, and no sum overflows.
TEST(FixedPoint, AnySplitOfTheTilesGivesTheSameBits) {
  constexpr size_t n = 500;
  for (const int tiles : {1, 2, 3, 8, 13}) {
    std::vector<std::vector<float>> x;
    for (int t = 0; t < tiles; ++t) x.push_back(draw(n, 1e-3, unsigned(t)));
    const int e = 20;
    std::vector<int32_t> serial(n);
    for (int t = 0; t < tiles; ++t) ASSERT_EQ(add_tile(x[size_t(t)].data(), n, e, limit_of(tiles), t == 0, serial.data()), Fit::kFits);
    for (int cut = 1; cut < tiles; ++cut) {
      std::vector<int32_t> a(n), b(n);
      for (int t = tiles - 1; t >= cut; --t) ASSERT_EQ(add_tile(x[size_t(t)].data(), n, e, limit_of(tiles), t == tiles - 1, b.data()), Fit::kFits);
      for (int t = 0; t < cut; ++t) ASSERT_EQ(add_tile(x[size_t(t)].data(), n, e, limit_of(tiles), t == 0, a.data()), Fit::kFits);
      accumulate(b.data(), a.data(), n);
      EXPECT_EQ(b, serial) << tiles << " tiles, cut at " << cut;
    }
    for (size_t i = 0; i < n; ++i) {
      double exact = 0;
      for (const auto& tile : x) exact += double(tile[i]);
      EXPECT_NEAR(std::ldexp(double(serial[i]), -e), exact, double(tiles) * std::ldexp(0.5, -e) * 1.01);
    }
  }
}

TEST(FixedPoint, WhatDoesNotFitIsSaidAndNeverOverflows) {
  for (const int tiles : {1, 2, 3, 8, 1000}) {
    const int32_t limit = limit_of(tiles);
    ASSERT_LE(int64_t{limit} * tiles, std::numeric_limits<int32_t>::max());
    std::vector<float> g(40, 0.25f);
    std::vector<int32_t> sum(40);
    for (const float bad : {float(limit) * 1.01f, -float(limit) * 1.01f, 1e38f, -1e38f}) {
      g[17] = bad;
      EXPECT_EQ(add_tile(g.data(), 40, 0, limit, true, sum.data()), Fit::kTooLarge) << bad;
      EXPECT_LE(std::abs(int64_t{sum[17]}), limit);
    }
    for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      g[17] = bad;
      EXPECT_EQ(add_tile(g.data(), 40, 0, limit, true, sum.data()), Fit::kNotFinite) << bad;
      EXPECT_LE(std::abs(int64_t{sum[17]}), limit);
    }
    g[17] = std::nextafter(float(limit), 0.0f);
    EXPECT_EQ(add_tile(g.data(), 40, 0, limit, true, sum.data()), Fit::kFits);
  }
}

TEST(FixedPoint, TheExponentFollowsTheGradient) {
  for (const int tiles : {1, 4, 8, 100})
    for (const double size : {1e-8, 1e-3, 1.0, 300.0}) {
      int e = first_exponent(tiles);
      EXPECT_LE(std::ldexp(1.0, e), double(limit_of(tiles))) << "1 fits";
      for (int step = 0; step < 40; ++step) {
        const int next = next_exponent(e, float(size), tiles);
        EXPECT_LE(next, e + kRiseBits);
        e = next;
      }
      // A tile 16 times larger than the sum fits; and no more than two bits are given away beyond that.
      EXPECT_LE(std::ldexp(size * 16, e), double(limit_of(tiles)));
      EXPECT_GT(std::ldexp(size * 16, e + 3), double(limit_of(tiles)));
      EXPECT_EQ(next_exponent(e, float(size), tiles), e);
      EXPECT_EQ(next_exponent(e, std::numeric_limits<float>::infinity(), tiles), std::max(e - kRetreatBits, kLowest));
      EXPECT_EQ(next_exponent(e, std::numeric_limits<float>::quiet_NaN(), tiles), e);
      EXPECT_EQ(next_exponent(e, 0.0f, tiles), e);
    }
  EXPECT_EQ(next_exponent(-58, std::numeric_limits<float>::infinity(), 8), kLowest);
}

TEST(FixedPoint, TheLargestMagnitude) {
  const std::vector<float> g{1, -3, 2};
  EXPECT_EQ(largest(g.data(), 3), 3.0f);
  EXPECT_EQ(largest(g.data(), 0), 0.0f);
  const std::vector<float> bad{1, -std::numeric_limits<float>::infinity(), 2};
  EXPECT_TRUE(std::isinf(largest(bad.data(), 3)));
}

}  // namespace
}  // namespace tessera::collective::fixed_point
