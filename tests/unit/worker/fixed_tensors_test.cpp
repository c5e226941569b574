// The device's arithmetic of fixed32, run on CPU tensors, against the loops: the same bits.
#include "worker/trainer/fixed_tensors.h"

#include <gtest/gtest.h>

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "worker/collective/fixed_point.h"

namespace tessera::trainer {
namespace {

namespace fixed_point = collective::fixed_point;

at::Tensor view(std::vector<float>& values) { return at::from_blob(values.data(), {int64_t(values.size())}, at::kFloat); }

TEST(FixedTensors, EqualTheLoopsBitForBit) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal(0, 1e-3);
  for (const int tiles : {1, 3, 8})
    for (const int exponent : {-3, 0, 12, 24, 30})
      for (const float odd : {0.0f, 0.5f, 2.5f, -0.0f, 1e30f, -1e30f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::denorm_min()}) {
        const size_t n = 1003;
        const int32_t limit = fixed_point::limit_of(tiles);
        std::vector<int32_t> loops(n, 5);
        at::Tensor sum = at::zeros({int64_t(n)}, at::kInt).fill_(5), faults = at::zeros({2}, at::kInt);
        int too_large = 0, not_finite = 0;
        for (int tile = 0; tile < tiles; ++tile) {
          std::vector<float> g(n);
          for (float& x : g) x = float(normal(random));
          g[tile] = odd;
          const auto fit = fixed_point::add_tile(g.data(), int64_t(n), exponent, limit, tile == 0, loops.data());
          too_large += fit == fixed_point::Fit::kTooLarge, not_finite += fit == fixed_point::Fit::kNotFinite;
          fixed_tensors::add_tile(view(g), exponent, limit, tile == 0, sum, faults);
          const float most = fixed_point::largest(g.data(), int64_t(n)), same = fixed_tensors::largest_of({view(g)})[0];
          EXPECT_TRUE(most == same || (std::isnan(most) && std::isnan(same)));
        }
        ASSERT_EQ(std::memcmp(loops.data(), sum.const_data_ptr<int32_t>(), n * 4), 0) << tiles << " tiles, exponent " << exponent << ", with " << odd;
        EXPECT_EQ(faults[0].item<int>(), too_large) << odd;
        EXPECT_EQ(faults[1].item<int>(), not_finite) << odd;
        std::vector<float> back(n), same(n);
        fixed_point::to_floats(loops.data(), int64_t(n), exponent, back.data());
        fixed_tensors::to_floats(sum, exponent, view(same));
        ASSERT_EQ(std::memcmp(back.data(), same.data(), n * 4), 0);
      }
}

}  // namespace
}  // namespace tessera::trainer
