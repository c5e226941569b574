#include "worker/evaluate/knn.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tessera::evaluate {
namespace {

at::Tensor random(at::IntArrayRef shape, uint64_t seed) { return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat); }

// One query at a time, all similarities sorted, in double.
std::vector<int64_t> brute_force(const at::Tensor& query_d, const at::Tensor& bank_nd, int64_t k) {
  const at::Tensor bank = bank_nd.to(at::kDouble), unit = bank / bank.norm(2, 1, true).clamp_min(1e-12), query = query_d.to(at::kDouble);
  const at::Tensor similarity = unit.mv(query / query.norm().clamp_min(1e-12));
  std::vector<int64_t> order(static_cast<size_t>(bank_nd.size(0)));
  std::iota(order.begin(), order.end(), 0);
  const double* s = similarity.const_data_ptr<double>();
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s[a] > s[b]; });
  order.resize(size_t(k));
  return order;
}

TEST(Nearest, equals_brute_force_over_all_block_shapes) {
  for (const auto& [queries, bank, d, k] : {std::tuple{1, 1, 3, 1}, {7, 15, 5, 15}, {300, 5000, 8, 20}, {257, 4097, 4, 200}, {3, 9000, 16, 1}}) {
    const at::Tensor q = random({queries, d}, 1), b = random({bank, d}, 2);
    const Nearest found = nearest(q, b, k);
    ASSERT_EQ(int64_t(found.index_qk.size()), queries * k);
    for (int64_t i = 0; i < queries; i += std::max<int64_t>(1, queries / 20)) {
      const std::vector<int64_t> ours(found.index_qk.begin() + i * k, found.index_qk.begin() + (i + 1) * k);
      EXPECT_EQ(ours, brute_force(q[i], b, k)) << queries << " queries, " << bank << " rows, k " << k << ", query " << i;
      EXPECT_TRUE(std::is_sorted(found.similarity_qk.begin() + i * k, found.similarity_qk.begin() + (i + 1) * k, std::greater<>()));
    }
  }
}

TEST(Nearest, equal_similarities_go_to_the_smaller_row) {
  const at::Tensor bank = at::ones({6000, 4}), query = at::ones({2, 4});
  const Nearest found = nearest(query, bank, 5);
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 5; ++j) EXPECT_EQ(found.index_qk[size_t(i * 5 + j)], j);
}

TEST(Nearest, length_does_not_matter_and_a_row_of_zeros_is_at_right_angles_to_all) {
  const at::Tensor bank = at::tensor({0.0f, 0.0f, 100.0f, 0.0f, 0.0f, 0.001f}).view({3, 2}), query = at::tensor({3.0f, 0.1f, 0.0f, 0.0f}).view({2, 2});
  const Nearest found = nearest(query, bank, 3);
  EXPECT_EQ(std::vector<int64_t>(found.index_qk.begin(), found.index_qk.begin() + 3), (std::vector<int64_t>{1, 2, 0}));
  for (size_t j = 3; j < 6; ++j) EXPECT_EQ(found.similarity_qk[j], 0.0f);
}

// One query with neighbours of these classes, nearest first.
Nearest one_query(const std::vector<float>& similarities) {
  Nearest out{1, int64_t(similarities.size()), {}, similarities};
  out.index_qk.resize(similarities.size());
  std::iota(out.index_qk.begin(), out.index_qk.end(), 0);
  return out;
}

TEST(Vote, one_near_neighbour_outweighs_two_far_ones_by_weight_but_not_by_number) {
  const Nearest found = one_query({0.9f, 0.8f, 0.8f});
  const std::vector<int64_t> labels{2, 0, 0};
  ASSERT_GT(std::exp(0.9 / kVoteTemperature), 2 * std::exp(0.8 / kVoteTemperature));
  EXPECT_EQ(vote(found, labels, 3, 3, Vote::kWeighted), (std::vector<int64_t>{2}));
  EXPECT_EQ(vote(found, labels, 3, 3, Vote::kMajority), (std::vector<int64_t>{0}));
}

TEST(Vote, a_tie_goes_to_the_class_with_the_nearer_neighbour) {
  const std::vector<int64_t> labels{1, 0, 0, 1};
  EXPECT_EQ(vote(one_query({0.5f, 0.5f, 0.4f, 0.4f}), labels, 2, 4, Vote::kMajority), (std::vector<int64_t>{1}));
  EXPECT_EQ(vote(one_query({0.5f, 0.5f, 0.5f, 0.5f}), labels, 2, 4, Vote::kWeighted), (std::vector<int64_t>{1}));
}

TEST(Vote, only_the_first_k_vote) {
  const std::vector<int64_t> labels{1, 0, 0};
  EXPECT_EQ(vote(one_query({0.5f, 0.5f, 0.5f}), labels, 2, 1, Vote::kMajority), (std::vector<int64_t>{1}));
  EXPECT_EQ(vote(one_query({0.5f, 0.5f, 0.5f}), labels, 2, 3, Vote::kMajority), (std::vector<int64_t>{0}));
}

}  // namespace
}  // namespace tessera::evaluate
