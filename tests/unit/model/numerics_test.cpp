#include "worker/model/numerics.h"

#include <gtest/gtest.h>

#include <ATen/ops/addmm.h>
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <cmath>
#include <mutex>
#include <set>
#include <thread>

#include "common/philox.h"
#include "worker/model/parallel.h"

namespace tessera::model {
namespace {

// Whatever was chosen answers in true fp32, for shapes that the start-up check did not try.
TEST(Numerics, TheChosenProductIsTrueFp32) {
  choose_matmul();
  for (const int64_t inner : {48, 200, 1536}) {
    at::Tensor a = at::zeros({20, inner}), b = at::zeros({130, inner});
    PhiloxStream random(1, Purpose::kProbe, uint64_t(inner), 0);
    for (at::Tensor* m : {&a, &b})
      for (int64_t i = 0; i < m->numel(); ++i) m->mutable_data_ptr<float>()[i] = random.next_float() - 0.5f;
    const at::Tensor product = at::addmm(at::zeros({130}), a, b.t());
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < 20; ++i)
      for (int64_t j = 0; j < 130; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < inner; ++k) sum += double(a.const_data_ptr<float>()[i * inner + k]) * double(b.const_data_ptr<float>()[j * inner + k]);
        worst = std::max(worst, std::fabs(double(product.const_data_ptr<float>()[i * 130 + j]) - sum)), largest = std::max(largest, std::fabs(sum));
      }
    // Rounding of a longer sum grows with its root; bfloat16 would be off by a thousandth.
    EXPECT_LE(worst / largest, 1e-6 * std::max(1.0, std::sqrt(double(inner) / 384))) << choose_matmul() << ", inner " << inner;
  }
}

// A parallel loop of ours has as many threads as it was given: compiled without OpenMP it would be one, and nothing would say so.
TEST(Numerics, ParallelLoopsAreParallel) {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  at::parallel_for(0, 2, 1, [&](int64_t, int64_t) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  at::set_num_threads(before);
  EXPECT_EQ(threads.size(), 2u);
}

TEST(Numerics, TheChoiceIsPartOfTheClass) {
  const std::string one = numerics_class("cpu", 1), two = numerics_class("cpu", 2);
  EXPECT_NE(one.find(";matmul=" + choose_matmul() + ";"), std::string::npos) << one;
  EXPECT_NE(one, two);
  EXPECT_TRUE(choose_matmul() == "onednn-fp32" || choose_matmul() == "mkl-fp32");
}

}  // namespace
}  // namespace tessera::model
