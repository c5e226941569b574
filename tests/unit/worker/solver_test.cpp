#include "worker/evaluate/solver.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

#include "worker/evaluate/feature_cache.h"
#include "worker/evaluate/linear.h"

namespace tessera::evaluate {
namespace {

// Four classes, each about its own corner.
struct Corners {
  at::Tensor features_nd;
  Target target;
};
Corners corners(int64_t n, uint64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  Corners out{at::randn({n, 6}, random, at::kFloat), {}};
  out.target.classes = 4;
  for (int64_t i = 0; i < n; ++i) out.target.train.push_back(i % 4), out.features_nd[i][i % 4] += 2.5;
  out.target.test = out.target.train;
  return out;
}

TEST(Solver, sgd_and_lars_do_what_lbfgs_does) {
  at::set_num_threads(1);
  Corners train = corners(800, 1);
  const Corners test = corners(400, 2);
  train.target.test = test.target.train;
  const double best = probe(train.features_nd, test.features_nd, train.target, 0).accuracy;
  ASSERT_GT(best, 0.8);
  for (const Solver solver : {Solver::kSgd, Solver::kLars}) {
    const ProbeScore score = probe(train.features_nd, test.features_nd, train.target, 0, {solver, 50, 64});
    EXPECT_NEAR(score.accuracy, best, 0.03);
    EXPECT_GT(score.lr, 0);
  }
}

// After one full-batch step the weight has moved by trust x |w| (momentum has no past, the trust ratio no decay): LARS's definition.
TEST(Solver, a_lars_step_has_the_length_of_its_definition) {
  at::set_num_threads(1);
  const Corners train = corners(64, 1);
  const SgdOptions options{Solver::kLars, 1.0, 0, 1, 64, 0};
  SgdOptions none = options;
  none.lr = 0;
  const at::Tensor start = fit_sgd(train.features_nd, train.target.train, 4, none).weight_dc, moved = fit_sgd(train.features_nd, train.target.train, 4, options).weight_dc;
  EXPECT_NEAR((moved - start).norm().item<double>(), 0.001 * start.norm().item<double>(), 1e-6);
}

class Cache : public testing::Test {
 protected:
  Cache() : folder(std::filesystem::temp_directory_path() / ("tessera-features-" + std::to_string(::getpid()))) { std::filesystem::remove_all(folder); }
  ~Cache() override { std::filesystem::remove_all(folder); }
  std::filesystem::path folder;
};

TEST_F(Cache, gives_back_what_was_kept) {
  const FeatureCache cache(folder.string());
  const at::Tensor rows = corners(10, 3).features_nd;
  EXPECT_FALSE(cache.find({1, 2}).has_value());
  cache.keep({1, 2}, rows), cache.keep({3, 4}, rows.to(at::kDouble));
  ASSERT_TRUE(cache.find({1, 2}).has_value());
  EXPECT_TRUE(at::equal(*cache.find({1, 2}), rows));
  EXPECT_EQ(cache.find({3, 4})->scalar_type(), at::kDouble);
  EXPECT_FALSE(FeatureCache("").find({1, 2}).has_value());
}

TEST_F(Cache, a_changed_byte_counts_as_missing) {
  const FeatureCache cache(folder.string());
  cache.keep({1, 2}, at::ones({10, 4}));
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end), file.put(1);
  }
  EXPECT_FALSE(cache.find({1, 2}).has_value());
}

TEST_F(Cache, the_longest_unused_goes_when_it_is_full) {
  const FeatureCache cache(folder.string(), 5 * 4096);
  const at::Tensor rows = at::ones({1024});
  for (uint64_t i = 0; i < 3; ++i) {
    cache.keep({0, i}, rows);
    std::filesystem::last_write_time(folder / (to_hex(Hash128{0, i}) + ".safetensors"), std::filesystem::file_time_type::clock::now() - std::chrono::hours(10 - int64_t(i)));
  }
  ASSERT_TRUE(cache.find({0, 0}).has_value());  // used: now the youngest
  for (uint64_t i = 3; i < 5; ++i) cache.keep({0, i}, rows);
  EXPECT_TRUE(cache.find({0, 0}).has_value());
  EXPECT_FALSE(cache.find({0, 1}).has_value());
  cache.keep({9, 9}, at::ones({4 * 1024}));  // more than half of the limit
  EXPECT_FALSE(cache.find({9, 9}).has_value());
}

}  // namespace
}  // namespace tessera::evaluate
