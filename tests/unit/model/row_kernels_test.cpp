#include "worker/model/row_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace tessera::model::kernels {
namespace {

using Floats = std::vector<float>;
using Halves = std::vector<Half>;

Floats wave(int64_t n, double step, double height = 1) {
  Floats out(static_cast<size_t>(n));
  for (size_t i = 0; i < out.size(); ++i) out[i] = float(height * std::sin(step * double(i + 1)));
  return out;
}
float widened(Half h) {
  const uint32_t bits = uint32_t(h.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}
Floats widened(const Halves& h) {
  Floats out;
  for (const Half x : h) out.push_back(widened(x));
  return out;
}
// Nearest, ties to even, by comparing candidates: the definition, not the trick.
Half nearest(float x) {
  if (std::isnan(x)) return {0x7fc0};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t low = bits & 0xffff, down = bits >> 16;
  return {uint16_t(low > 0x8000 || (low == 0x8000 && (down & 1)) ? down + 1 : down)};
}
Halves rounded(const Floats& x) {
  Halves out(x.size());
  round_to_half(x.data(), out.data(), 0, int64_t(x.size()));
  return out;
}
bool same(const Halves& a, const Halves& b) { return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Half)) == 0; }

const std::vector<int64_t> kWidths{1, 5, 16, 24, 33, 96, 384};

TEST(Half, IsRoundedToNearestEven) {
  Floats x{0.0f, -0.0f, 1.0f, 1.00390625f, 1.01171875f, 1.005f, -3.3e38f, 3.4e38f, 1e-40f, -1e-45f, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()};
  for (uint32_t i = 0; i < 70000; ++i) {
    const uint32_t bits = i * 61423u;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isnan(value)) x.push_back(value);
  }
  const Halves got = rounded(x);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(got[i].bits, nearest(x[i]).bits) << x[i];
  const Halves nan = rounded({std::nanf(""), -std::nanf("1")});
  EXPECT_TRUE(std::isnan(widened(nan[0])) && std::isnan(widened(nan[1])));
}

struct Normed {
  Floats sum, out, mean, rstd;
  Halves half;
};
Floats added_bias(int64_t d) { return wave(d, 0.9); }
Normed norm(const Floats& residual, In added, int64_t rows, int64_t d, bool half, int64_t cut) {
  const Floats gamma = wave(d, 0.3), beta = wave(d, 0.7);
  const size_t n = size_t(rows * d);
  Normed r{Floats(n), Floats(n), Floats(size_t(rows)), Floats(size_t(rows)), Halves(n)};
  const Floats bias = added_bias(d);
  const NormRows args{residual.data(), added, bias.data(), r.sum.data(), gamma.data(), beta.data(), 1e-6f, rows, d, half ? Out{nullptr, r.half.data()} : Out{r.out.data(), nullptr}, r.mean.data(), r.rstd.data()};
  norm_rows(args, cut, rows);
  norm_rows(args, 0, cut);
  return r;
}

TEST(NormRows, AgreesWithDoubleForBothTypesAndAnyCut) {
  const int64_t rows = 7;
  for (const int64_t d : kWidths) {
    SCOPED_TRACE(d);
    const Floats residual = wave(rows * d, 0.37, 2), added = wave(rows * d, 1.1), bias = added_bias(d), gamma = wave(d, 0.3), beta = wave(d, 0.7);
    const Halves added_half = rounded(added);
    const Normed whole = norm(residual, {added.data(), nullptr}, rows, d, false, 0), cut = norm(residual, {added.data(), nullptr}, rows, d, false, 3);
    EXPECT_EQ(whole.out, cut.out);
    const Normed half = norm(residual, {nullptr, added_half.data()}, rows, d, true, 0), plain = norm(residual, {}, rows, d, false, 0);
    for (int64_t r = 0; r < rows; ++r) {
      double mean = 0, square = 0;
      const auto at = [&](int64_t j) { return size_t(r * d + j); };
      for (int64_t j = 0; j < d; ++j) mean += double(residual[at(j)] + (added[at(j)] + bias[size_t(j)])) / double(d);
      for (int64_t j = 0; j < d; ++j) square += std::pow(double(residual[at(j)] + (added[at(j)] + bias[size_t(j)])) - mean, 2) / double(d);
      EXPECT_NEAR(whole.mean[size_t(r)], mean, 1e-6);
      EXPECT_NEAR(whole.rstd[size_t(r)] * std::sqrt(square + 1e-6), 1, 1e-3 * (d == 1) + 1e-5);
      for (int64_t j = 0; j < d; ++j) {
        ASSERT_EQ(whole.sum[at(j)], residual[at(j)] + (added[at(j)] + bias[size_t(j)]));
        ASSERT_EQ(half.sum[at(j)], residual[at(j)] + (widened(added_half[at(j)]) + bias[size_t(j)]));
        if (d > 1) {
          ASSERT_NEAR(whole.out[at(j)], (double(whole.sum[at(j)]) - mean) / std::sqrt(square + 1e-6) * gamma[size_t(j)] + beta[size_t(j)], 2e-5);
        }
      }
    }
    // The half output is the rounding of the full one over the same sum.
    Normed again = norm(half.sum, {}, rows, d, false, 0);
    EXPECT_TRUE(same(half.half, rounded(again.out)));
    EXPECT_TRUE(d == 1 || plain.out != whole.out);
  }
}

struct Slopes {
  Floats dx, dgamma, dbeta, sum;
  Halves half;
};
Slopes norm_backward(const Floats& x, In dy, const Floats* residual, int64_t rows, int64_t d, int64_t cut) {
  const Floats gamma = wave(d, 0.3), zero(size_t(d), 0.0f);
  const size_t n = size_t(rows * d), width = size_t(d);
  Floats out(n), mean(static_cast<size_t>(rows)), rstd(static_cast<size_t>(rows)), scratch(size_t(3 * d * chunk_count(rows)));
  norm_rows({x.data(), {}, nullptr, nullptr, gamma.data(), zero.data(), 1e-6f, rows, d, {out.data(), nullptr}, mean.data(), rstd.data()}, 0, rows);
  Slopes s{Floats(n), Floats(width), Floats(width), Floats(width), Halves(n)};
  const NormBackward args{x.data(), dy, mean.data(), rstd.data(), gamma.data(), residual ? residual->data() : nullptr, rows, d, s.dx.data(), s.half.data(), scratch.data()};
  norm_backward_chunks(args, cut, chunk_count(rows));
  norm_backward_chunks(args, 0, cut);
  norm_backward_finish(args, s.dgamma.data(), s.dbeta.data(), s.sum.data());
  return s;
}

TEST(NormBackward, AgreesWithThePlainOne) {
  for (const int64_t rows : {1, 64, 65, 200})
    for (const int64_t d : kWidths) {
      SCOPED_TRACE("rows " + std::to_string(rows) + " d " + std::to_string(d));
      const Floats x = wave(rows * d, 0.37, 2), dy = wave(rows * d, 1.1), residual = wave(rows * d, 0.9), gamma = wave(d, 0.3), zero(size_t(d), 0.0f);
      Floats out(x.size()), mean(static_cast<size_t>(rows)), rstd(static_cast<size_t>(rows)), dx(x.size()), dgamma(static_cast<size_t>(d)), dbeta(static_cast<size_t>(d)), scratch(size_t(2 * d * chunk_count(rows)));
      norm_rows({x.data(), {}, nullptr, nullptr, gamma.data(), zero.data(), 1e-6f, rows, d, {out.data(), nullptr}, mean.data(), rstd.data()}, 0, rows);
      const LayerNormBackward plain{x.data(), dy.data(), mean.data(), rstd.data(), gamma.data(), residual.data(), rows, d, dx.data(), dgamma.data(), dbeta.data(), scratch.data()};
      layer_norm_backward_chunks(plain, 0, chunk_count(rows));
      layer_norm_backward_finish(plain);
      const Slopes s = norm_backward(x, {dy.data(), nullptr}, &residual, rows, d, 0), cut = norm_backward(x, {dy.data(), nullptr}, &residual, rows, d, chunk_count(rows) / 2);
      EXPECT_TRUE(s.dx == cut.dx && s.dgamma == cut.dgamma && s.dbeta == cut.dbeta && s.sum == cut.sum);
      EXPECT_TRUE(same(s.half, rounded(s.dx)));
      const double scale = d == 1 ? 1e3 : 1;  // one channel: the variance is zero, rstd a thousand
      Floats sums(size_t(d), 0.0f);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_NEAR(s.dx[i], dx[i], 2e-5 * scale);
        sums[i % size_t(d)] += s.dx[i];
      }
      for (size_t j = 0; j < size_t(d); ++j) {
        EXPECT_NEAR(s.dgamma[j], dgamma[j], 1e-4 * scale);
        EXPECT_NEAR(s.dbeta[j], dbeta[j], 1e-4);
        EXPECT_NEAR(s.sum[j], sums[j], 1e-4 * scale);
      }
      const Halves dy_half = rounded(dy);
      const Floats dy_wide = widened(dy_half);
      EXPECT_EQ(norm_backward(x, {nullptr, dy_half.data()}, nullptr, rows, d, 0).dx, norm_backward(x, {dy_wide.data(), nullptr}, nullptr, rows, d, 0).dx);
    }
}

TEST(Gelu, AndItsDerivativeAgreeWithDouble) {
  const int64_t rows = 70, d = 33;
  const Floats x = wave(rows * d, 0.37, 6), bias = wave(d, 0.9), dy = wave(rows * d, 1.1);
  Floats y(x.size()), parts(x.size()), dx(x.size()), scratch(size_t(d * chunk_count(rows))), sum(static_cast<size_t>(d)), wanted_sum(size_t(d), 0.0f);
  const auto forward = [&](In before, Out after, int64_t first, int64_t last) { gelu({before, bias.data(), d, after}, first, last); };
  const auto backward = [&](In dafter, In before, Out dbefore) { gelu_backward_chunks({dafter, before, bias.data(), rows, d, dbefore, scratch.data()}, 0, chunk_count(rows)); };
  forward({x.data(), nullptr}, {y.data(), nullptr}, 0, rows);
  forward({x.data(), nullptr}, {parts.data(), nullptr}, 2, rows), forward({x.data(), nullptr}, {parts.data(), nullptr}, 0, 2);
  EXPECT_EQ(y, parts);
  backward({dy.data(), nullptr}, {x.data(), nullptr}, {dx.data(), nullptr});
  add_chunks(scratch.data(), chunk_count(rows), d, sum.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = x[i] + bias[i % size_t(d)], cdf = 0.5 * std::erfc(-v / std::sqrt(2.0)), pdf = std::exp(-v * v / 2) / std::sqrt(2 * M_PI);
    ASSERT_NEAR(y[i], v * cdf, 1e-6) << v;
    ASSERT_NEAR(dx[i], double(dy[i]) * (cdf + v * pdf), 1e-6) << v;
    wanted_sum[i % size_t(d)] += dx[i];
  }
  for (size_t j = 0; j < size_t(d); ++j) EXPECT_NEAR(sum[j], wanted_sum[j], 1e-5);
  // In halves: the same on the widened values, rounded once.
  const Halves x_half = rounded(x), dy_half = rounded(dy);
  const Floats x_wide = widened(x_half), dy_wide = widened(dy_half);
  Halves y_half(x.size()), dx_half(x.size());
  forward({nullptr, x_half.data()}, {nullptr, y_half.data()}, 0, rows);
  forward({x_wide.data(), nullptr}, {y.data(), nullptr}, 0, rows);
  EXPECT_TRUE(same(y_half, rounded(y)));
  backward({nullptr, dy_half.data()}, {nullptr, x_half.data()}, {nullptr, dx_half.data()});
  backward({dy_wide.data(), nullptr}, {x_wide.data(), nullptr}, {dx.data(), nullptr});
  EXPECT_TRUE(same(dx_half, rounded(dx)));
}

TEST(Gelu, NanStaysNanAndLargeValuesAreThemselves) {
  const Floats x{std::nanf(""), 40, -40, 1e30f}, bias(4);
  Floats y(4);
  gelu({{x.data(), nullptr}, bias.data(), 4, {y.data(), nullptr}}, 0, 1);
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[1], 40);
  EXPECT_NEAR(y[2], 0, 1e-30);
  EXPECT_EQ(y[3], 1e30f);
}

TEST(SumRows, AddsRowsInChunksAndRounds) {
  for (const int64_t rows : {1, 64, 129})
    for (const int64_t d : kWidths) {
      const Floats x = wave(rows * d, 0.37);
      Floats scratch(size_t(d * chunk_count(rows))), sum(static_cast<size_t>(d)), half_sum(static_cast<size_t>(d));
      Halves half(x.size());
      sum_rows_chunks({{x.data(), nullptr}, rows, d, half.data(), scratch.data()}, 0, chunk_count(rows));
      add_chunks(scratch.data(), chunk_count(rows), d, sum.data());
      EXPECT_TRUE(same(half, rounded(x)));
      sum_rows_chunks({{nullptr, half.data()}, rows, d, nullptr, scratch.data()}, 0, chunk_count(rows));
      add_chunks(scratch.data(), chunk_count(rows), d, half_sum.data());
      for (int64_t j = 0; j < d; ++j) {
        double wanted = 0, wanted_half = 0;
        for (int64_t r = 0; r < rows; ++r) wanted += x[size_t(r * d + j)], wanted_half += widened(half[size_t(r * d + j)]);
        EXPECT_NEAR(sum[size_t(j)], wanted, 1e-5);
        EXPECT_NEAR(half_sum[size_t(j)], wanted_half, 1e-5);
      }
    }
}

}  // namespace
}  // namespace tessera::model::kernels
