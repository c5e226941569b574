#include "worker/trainer/vote.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tessera::trainer {
namespace {

using ::testing::HasSubstr;

std::vector<Vote> equal_votes(size_t count) {
  std::vector<Vote> votes(count);
  for (size_t r = 0; r < count; ++r) {
    votes[r].term = 3, votes[r].number = 17, votes[r].step = 41;
    votes[r].state = {1, 2}, votes[r].gradient = {3, 4};
    votes[r].batch = {r + 1, 10 * (r + 1)};
  }
  return votes;
}

TEST(Tally, EqualVotesAgreeAndTheBatchSharesAreSummed) {
  auto votes = equal_votes(3);
  votes[0].stop_after = 50, votes[0].checkpoint = 1, votes[0].acknowledged = 39;
  votes[1].stop_after = 7;  // only rank 0's word counts
  const auto agreed = tally(votes);
  ASSERT_TRUE(agreed);
  EXPECT_EQ(agreed->batch, (StateDigest{6, 60}));
  EXPECT_EQ(agreed->stop_after, 50);
  EXPECT_TRUE(agreed->checkpoint);
  EXPECT_EQ(agreed->acknowledged, 39);
}

TEST(Tally, OneOtherStateIsNamed) {
  for (size_t other = 0; other < 3; ++other) {
    auto votes = equal_votes(3);
    votes[other].state.b ^= 1;
    const auto agreed = tally(votes);
    ASSERT_FALSE(agreed);
    EXPECT_EQ(agreed.error().suspect, Rank(other));
    EXPECT_THAT(agreed.error().reason, HasSubstr("rank " + std::to_string(other) + " holds another state of step 41"));
  }
}

TEST(Tally, OneOtherGradientIsNamed) {
  auto votes = equal_votes(4);
  votes[2].gradient.a ^= 1ull << 63;
  const auto agreed = tally(votes);
  ASSERT_FALSE(agreed);
  EXPECT_EQ(agreed.error().suspect, 2);
  EXPECT_THAT(agreed.error().reason, HasSubstr("gradient"));
}

TEST(Tally, TwoAgainstTwoHasNoSuspect) {
  auto votes = equal_votes(4);
  votes[1].state.a = votes[3].state.a = 99;
  const auto agreed = tally(votes);
  ASSERT_FALSE(agreed);
  EXPECT_EQ(agreed.error().suspect, -1);
  EXPECT_THAT(agreed.error().reason, HasSubstr("ranks "));
}

TEST(Tally, OfTwoTheOneWhoseStateChangedUnderItIsNamed) {
  for (size_t changed = 0; changed < 2; ++changed) {
    auto votes = equal_votes(2);
    for (auto& vote : votes) vote.applied = vote.state;
    votes[changed].state.a ^= 1ull << 17;
    const auto agreed = tally(votes);
    ASSERT_FALSE(agreed);
    EXPECT_EQ(agreed.error().suspect, Rank(changed));
    EXPECT_THAT(agreed.error().reason, HasSubstr("the state of rank " + std::to_string(changed) + " changed"));
  }
}

TEST(Tally, OfTwoThatDifferedBeforeTheStepNobodyIsNamed) {
  auto votes = equal_votes(2);
  votes[1].state.a ^= 1;
  for (auto& vote : votes) vote.applied = vote.state;
  const auto agreed = tally(votes);
  ASSERT_FALSE(agreed);
  EXPECT_EQ(agreed.error().suspect, -1);
}

TEST(Tally, AnotherGenerationOrStepIsNoVote) {
  for (auto change : {+[](Vote& v) { v.term = 2; }, +[](Vote& v) { v.number = 16; }, +[](Vote& v) { v.step = 40; }}) {
    auto votes = equal_votes(3);
    change(votes[1]);
    const auto agreed = tally(votes);
    ASSERT_FALSE(agreed);
    EXPECT_EQ(agreed.error().suspect, 1);
  }
}

}  // namespace
}  // namespace tessera::trainer
