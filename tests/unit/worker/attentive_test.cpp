#include "worker/evaluate/attentive.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "worker/evaluate/logistic.h"

namespace tessera::evaluate {
namespace {

// Images of 16 patches of noise; in one patch, anywhere, channel `class` is large. A mean over patches hardly shows it.
struct Hidden {
  at::Tensor patches_nkd;
  std::vector<int64_t> labels;
};
Hidden hidden_patch(int64_t n, uint64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  Hidden out{at::randn({n, 16, 12}, random, at::kFloat), {}};
  for (int64_t i = 0; i < n; ++i) {
    out.labels.push_back(i % 4);
    out.patches_nkd[i][i * 7 % 16][i % 4].fill_(6.0f);
  }
  return out;
}

TEST(AttentiveProbe, finds_the_one_patch_that_tells_the_class) {
  at::set_num_threads(1);
  const Hidden train = hidden_patch(400, 1), test = hidden_patch(200, 2);
  const auto predicted = attentive_probe(train.patches_nkd, train.labels, 4, test.patches_nkd, 3, 1e-2, {12, 32}, 0);
  EXPECT_GT(accuracy(predicted, test.labels), 0.9);
}

TEST(AttentiveProbe, repeats_itself) {
  const Hidden train = hidden_patch(100, 1);
  EXPECT_EQ(attentive_probe(train.patches_nkd, train.labels, 4, train.patches_nkd, 3, 1e-3, {2, 32}, 5), attentive_probe(train.patches_nkd, train.labels, 4, train.patches_nkd, 3, 1e-3, {2, 32}, 5));
}

}  // namespace
}  // namespace tessera::evaluate
