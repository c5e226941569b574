// The passes' CUDA kernels, walked on the CPU, against the CPU's kernels and against double arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "tests/unit/cuda/host_launch.h"
#include "worker/model/kernels.h"

namespace tessera::cuda {
namespace {

using Floats = std::vector<float>;

class Bodies : public testing::TestWithParam<Order> {
 protected:
  void SetUp() override { host::order = GetParam(); }
  Floats random(int64_t n, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    Floats out(static_cast<size_t>(n));
    for (float& x : out) x = normal(engine_);
    return out;
  }
  std::mt19937 engine_{7};
};
INSTANTIATE_TEST_SUITE_P(Orders, Bodies, testing::Values(Order::kForward, Order::kBackward));

std::vector<Half> halves(const Floats& x) {
  std::vector<Half> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) put(out[i], x[i]);
  return out;
}
float rounded(float x) {
  Half h;
  put(h, x);
  return to_float(h);
}

struct Reference {
  double mean, rstd;
};
Reference row_reference(const float* x, int64_t d, double eps) {
  double mean = 0, squares = 0;
  for (int64_t j = 0; j < d; ++j) mean += double(x[j]) / double(d);
  for (int64_t j = 0; j < d; ++j) squares += (x[j] - mean) * (x[j] - mean) / double(d);
  return {mean, 1 / std::sqrt(squares + eps)};
}

TEST(Half, RoundsToNearestEvenAndKeepsWhatIsNotANumber) {
  EXPECT_EQ(rounded(1.0f), 1.0f);
  EXPECT_EQ(rounded(1.0f + 1.0f / 256), 1.0f);            // a tie, to even
  EXPECT_EQ(rounded(1.0f + 3.0f / 256), 1.0f + 1.0f / 64);  // a tie, to even
  EXPECT_TRUE(std::isnan(rounded(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isinf(rounded(std::numeric_limits<float>::infinity())));
}

TEST_P(Bodies, AddNormIsTheSumAndItsLayerNorm) {
  for (const int64_t d : {48, 384, 1280, 2048}) {
    const int64_t rows = 3;
    const Floats x = random(rows * d), y = random(rows * d, 3), gamma = random(d), beta = random(d);
    const auto y_half = halves(y);
    Floats sum(x.size()), mean(rows), rstd(rows);
    std::vector<Half> out(x.size());
    add_norm(AddNorm<Half, Half>{y_half.data(), x.data(), gamma.data(), beta.data(), d, 1e-6f, sum.data(), out.data(), mean.data(), rstd.data()}, rows, nullptr);
    for (int64_t r = 0; r < rows; ++r) {
      const Reference want = row_reference(sum.data() + r * d, d, 1e-6);
      EXPECT_NEAR(mean[size_t(r)], want.mean, 1e-6);
      EXPECT_NEAR(rstd[size_t(r)], want.rstd, 1e-5 * want.rstd);
      for (int64_t j = 0; j < d; ++j) {
        const size_t i = size_t(r * d + j);
        ASSERT_EQ(sum[i], to_float(y_half[i]) + x[i]);
        const double normed = (sum[i] - want.mean) * want.rstd * gamma[size_t(j)] + beta[size_t(j)];
        ASSERT_NEAR(to_float(out[i]), normed, 0.005 * std::fabs(normed) + 1e-4) << "row " << r << ", channel " << j << " of " << d;
      }
    }
  }
}

TEST_P(Bodies, NormWithoutAffineAndSums) {
  const int64_t rows = 5, d = 192;
  const Floats x = random(rows * d, 2);
  Floats out(x.size());
  add_norm(AddNorm<float, float>{nullptr, x.data(), nullptr, nullptr, d, 1e-5f, nullptr, out.data(), nullptr, nullptr}, rows, nullptr);
  for (int64_t r = 0; r < rows; ++r) {
    const Reference want = row_reference(x.data() + r * d, d, 1e-5);
    for (int64_t j = 0; j < d; ++j) ASSERT_NEAR(out[size_t(r * d + j)], (x[size_t(r * d + j)] - want.mean) * want.rstd, 2e-5);
  }
}

TEST_P(Bodies, NormBackwardIsTheCpus) {
  for (const auto& [rows, d] : {std::pair<int64_t, int64_t>{1, 48}, {37, 384}, {130, 96}, {16, 1280}}) {
    const Floats x = random(rows * d), dy = random(rows * d), gamma = random(d), residual = random(rows * d);
    Floats mean(static_cast<size_t>(rows)), rstd(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      const Reference of = row_reference(x.data() + r * d, d, 1e-6);
      mean[size_t(r)] = float(of.mean), rstd[size_t(r)] = float(of.rstd);
    }
    Floats dx(x.size()), dgamma(static_cast<size_t>(d)), dbeta(static_cast<size_t>(d)), dsum(static_cast<size_t>(d)), scratch(static_cast<size_t>(norm_backward_scratch(rows, d)));
    std::vector<Half> half(x.size());
    norm_backward(NormBackward<float>{x.data(), dy.data(), mean.data(), rstd.data(), gamma.data(), residual.data(), rows, d, dx.data(), half.data(), scratch.data()}, dgamma.data(), dbeta.data(),
                  dsum.data(), nullptr);
    Floats want_dx(x.size()), want_dgamma(static_cast<size_t>(d)), want_dbeta(static_cast<size_t>(d)), cpu_scratch(static_cast<size_t>(2 * d * model::kernels::chunk_count(rows)));
    const model::kernels::LayerNormBackward cpu{x.data(), dy.data(), mean.data(), rstd.data(), gamma.data(), residual.data(), rows, d, want_dx.data(), want_dgamma.data(), want_dbeta.data(), cpu_scratch.data()};
    model::kernels::layer_norm_backward_chunks(cpu, 0, model::kernels::chunk_count(rows));
    model::kernels::layer_norm_backward_finish(cpu);
    Floats want_dsum(static_cast<size_t>(d));
    for (size_t i = 0; i < dx.size(); ++i) {
      ASSERT_NEAR(dx[i], want_dx[i], 1e-5 * (1 + std::fabs(want_dx[i]))) << i << " of " << rows << " x " << d;
      ASSERT_EQ(to_float(half[i]), rounded(dx[i]));
      want_dsum[i % size_t(d)] += dx[i];
    }
    for (size_t j = 0; j < dgamma.size(); ++j) {
      ASSERT_NEAR(dgamma[j], want_dgamma[j], 2e-5 * double(rows));
      ASSERT_NEAR(dbeta[j], want_dbeta[j], 2e-5 * double(rows));
      ASSERT_NEAR(dsum[j], want_dsum[j], 2e-5 * double(rows));
    }
  }
}

TEST_P(Bodies, ColumnsAreSummed) {
  const int64_t rows = 131, d = 288;
  const Floats x = random(rows * d);
  const auto x_half = halves(x);
  Floats scratch(static_cast<size_t>(column_scratch(rows, d))), sum(static_cast<size_t>(d)), half_sum(static_cast<size_t>(d));
  columns(ReadPair<float>{x.data(), d}, rows, d, scratch.data(), sum.data(), nullptr);
  columns(ReadPair<Half>{x_half.data(), d}, rows, d, scratch.data(), half_sum.data(), nullptr);
  for (int64_t j = 0; j < d; ++j) {
    double want = 0, want_half = 0;
    for (int64_t r = 0; r < rows; ++r) want += x[size_t(r * d + j)], want_half += to_float(x_half[size_t(r * d + j)]);
    ASSERT_NEAR(sum[size_t(j)], want, 1e-4);
    ASSERT_NEAR(half_sum[size_t(j)], want_half, 1e-4);
  }
}

TEST_P(Bodies, GeluAndItsBackward) {
  const int64_t rows = 70, d = 26;
  const Floats before = random(rows * d, 2), dafter = random(rows * d);
  Floats after(before.size()), again(before.size()), dbefore(before.size()), scratch(static_cast<size_t>(column_scratch(rows, d))), sum(static_cast<size_t>(d)), want_sum(static_cast<size_t>(d));
  gelu_forward(before.data(), after.data(), int64_t(before.size()), nullptr);
  columns(GeluBackwardPair<float>{dafter.data(), before.data(), dbefore.data(), again.data(), d}, rows, d, scratch.data(), sum.data(), nullptr);
  EXPECT_EQ(after, again);
  for (size_t i = 0; i < before.size(); ++i) {
    const double x = before[i], cdf = 0.5 * (1 + std::erf(x / std::sqrt(2.0))), pdf = std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    ASSERT_NEAR(after[i], x * cdf, 1e-6 * (1 + std::fabs(x)));
    ASSERT_NEAR(dbefore[i], dafter[i] * (cdf + x * pdf), 2e-6 * (1 + std::fabs(dafter[i])));
    want_sum[i % size_t(d)] += dbefore[i];
  }
  for (size_t j = 0; j < sum.size(); ++j) EXPECT_NEAR(sum[j], want_sum[j], 1e-4);
}

TEST_P(Bodies, AttentionGradientsArePackedAndSummed) {
  const int64_t rows = 67, d = 48;
  const Floats q = random(rows * d), k = random(rows * d), v = random(rows * d);
  Floats packed(static_cast<size_t>(3 * rows * d)), scratch(static_cast<size_t>(column_scratch(rows, 3 * d))), sum(static_cast<size_t>(3 * d)), want(static_cast<size_t>(3 * d));
  columns(PackPair<float>{{q.data(), k.data(), v.data()}, d, packed.data()}, rows, 3 * d, scratch.data(), sum.data(), nullptr);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < 3 * d; ++j) {
      const Floats& from = j < d ? q : j < 2 * d ? k : v;
      ASSERT_EQ(packed[size_t(r * 3 * d + j)], from[size_t(r * d + j % d)]);
      want[size_t(j)] += from[size_t(r * d + j % d)];
    }
  for (size_t j = 0; j < sum.size(); ++j) EXPECT_NEAR(sum[j], want[j], 1e-4);
}

TEST_P(Bodies, LossIsTheCpus) {
  for (const int64_t n : {1, 255, 5000, 9001}) {
    const Floats a = random(n), b = random(n);
    for (const auto& [kind, cpu] : {std::pair{LossKind::kSmoothL1, model::kernels::Loss::kSmoothL1}, {LossKind::kL1, model::kernels::Loss::kL1}, {LossKind::kL2, model::kernels::Loss::kL2}}) {
      Floats gradient(a.size()), want_gradient(a.size());
      std::vector<double> partial(static_cast<size_t>(loss_blocks(n)));
      double sum = 0;
      loss({kind, a.data(), b.data(), n, gradient.data(), partial.data()}, &sum, nullptr);
      const double want = model::kernels::loss(cpu, a.data(), b.data(), n, want_gradient.data());
      EXPECT_EQ(gradient, want_gradient);
      EXPECT_NEAR(sum, want, 1e-5 * want);
    }
  }
}

TEST_P(Bodies, PatchesAreTheCpusBits) {
  constexpr int64_t kImages = 2, kSize = 28, kPatch = 7, kCount = 16, kWidth = 3 * 49;
  std::vector<uint8_t> pixels(kImages * kSize * kSize * 3);
  for (auto& p : pixels) p = uint8_t(engine_());
  const float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};
  Floats table(768), want(kImages * kCount * kWidth), out(want.size());
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) table[size_t(c * 256 + v)] = (float(v) / 255.0f - mean[c]) / std[c];
  for (int64_t i = 0; i < kImages; ++i) model::kernels::patchify(pixels.data() + i * kSize * kSize * 3, kSize, kPatch, mean, std, want.data() + i * kCount * kWidth);
  launch(Patchify<float>{pixels.data(), nullptr, table.data(), kSize, kPatch, out.data()}, kImages * kCount, nullptr);
  EXPECT_EQ(out, want);
  const std::vector<int64_t> rows{17, 3, 31};
  std::vector<Half> kept(rows.size() * kWidth);
  launch(Patchify<Half>{pixels.data(), rows.data(), table.data(), kSize, kPatch, kept.data()}, int64_t(rows.size()), nullptr);
  for (size_t r = 0; r < rows.size(); ++r)
    for (size_t j = 0; j < kWidth; ++j) ASSERT_EQ(to_float(kept[r * kWidth + j]), rounded(want[size_t(rows[r]) * kWidth + j]));
}

template <typename T>
void expect_e4m3(const std::vector<T>& x) {
  uint32_t largest = 0;
  for (const T v : x) largest = std::max(largest, model::e4m3::magnitude(to_float(v)));
  std::vector<uint32_t> scratch(kPartsOfLargest);
  std::vector<uint8_t> out(x.size());
  float scale = 0;
  to_e4m3(x.data(), int64_t(x.size()), scratch.data(), &scale, out.data(), nullptr);
  ASSERT_EQ(scale, model::e4m3::scale_of(largest));
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i], model::e4m3::encoded(to_float(x[i]) / scale)) << i << " of " << x.size();
}
TEST_P(Bodies, EightBitFloatsWithOneScale) {
  for (const int64_t n : {16, 4096, 4112, 100'000}) {
    for (const int64_t where : {int64_t{0}, n / 2 + 1, n - 1}) {  // the largest: each thread and either of a pair may have it
      Floats x = random(n, 5);
      x[size_t(where)] = 900;
      expect_e4m3(x), expect_e4m3(halves(x));
    }
  }
}

}  // namespace
}  // namespace tessera::cuda
