#include "worker/trainer/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tessera::trainer {
namespace {

using ::testing::HasSubstr;

TEST(Fence, GenerationsOnlyGrow) {
  Fence fence;
  EXPECT_TRUE(fence.admit_start({1, 1}));
  EXPECT_FALSE(fence.admit_start({1, 1})) << "a duplicate must not start it twice";
  EXPECT_TRUE(fence.admit_start({1, 2}));
  EXPECT_FALSE(fence.admit_start({1, 1}));
  EXPECT_FALSE(fence.admit_stop({1, 1})) << "a late stop of an older generation must not break the present one";
  EXPECT_TRUE(fence.admit_stop({1, 2}));
  EXPECT_TRUE(fence.admit_stop({1, 2})) << "its answer may have been lost: it is answered again";
}

TEST(Fence, ASealedGenerationIsNeverEntered) {
  Fence fence;
  EXPECT_TRUE(fence.admit_stop({1, 5}));
  EXPECT_FALSE(fence.admit_start({1, 5}));
  EXPECT_FALSE(fence.admit_start({1, 4}));
  EXPECT_TRUE(fence.admit_start({1, 6}));
}

TEST(Fence, AnOlderTermIsNotObeyed) {
  Fence fence;
  EXPECT_TRUE(fence.admit_start({2, 1}));
  EXPECT_FALSE(fence.admit_start({1, 9}));
  EXPECT_FALSE(fence.admit_stop({1, 9}));
  EXPECT_TRUE(fence.admit_stop({3, 1}));
  EXPECT_EQ(fence.highest_term, 3u);
  EXPECT_FALSE(fence.admit_start({2, 2}));
}

TEST(Fence, DirectivesAreForTheRunningGenerationOnly) {
  Fence fence;
  fence.admit_start({1, 3});
  EXPECT_TRUE(fence.admit_directive({1, 3}));
  EXPECT_FALSE(fence.admit_directive({1, 2}));
  EXPECT_FALSE(fence.admit_directive({1, 4}));
  fence.admit_stop({1, 3});
  EXPECT_FALSE(fence.admit_directive({1, 3}));
}

proto::WorldStart peer_start(Step step) {
  proto::WorldStart start;
  start.generation = {1, 2};
  start.lineage = "a";
  start.members.resize(3);
  start.start_step = step;
  start.source = proto::StateSource::kPeer;
  start.source_rank = 1;
  return start;
}

TEST(PlanEntry, SurvivorsKeepOrRollForwardJoinersReceive) {
  const auto start = peer_start(8);
  EXPECT_EQ(*plan_entry(start, 0, {true, 8, false, "a"}), Entry::kKeep);
  EXPECT_EQ(*plan_entry(start, 0, {true, 7, true, "a"}), Entry::kRollForward);
  EXPECT_EQ(*plan_entry(start, 0, {true, 7, false, "a"}), Entry::kReceive) << "without the gradient there is nothing to apply";
  EXPECT_EQ(*plan_entry(start, 0, {true, 6, true, "a"}), Entry::kReceive);
  EXPECT_EQ(*plan_entry(start, 0, {true, 9, false, "a"}), Entry::kReceive);
  EXPECT_EQ(*plan_entry(start, 0, {true, 8, false, "b"}), Entry::kReceive) << "the same step of another lineage is another state";
  EXPECT_EQ(*plan_entry(start, 0, {}), Entry::kReceive);
}

TEST(PlanEntry, ASourceWithoutTheStateSaysSo) {
  const auto refused = plan_entry(peer_start(8), 1, {true, 5, false, "a"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kRebuildWorld);
  EXPECT_THAT(refused.error().message, HasSubstr("state[5]"));
}

TEST(PlanEntry, NoSourceAndAnInitialStateInMidRunAreRefused) {
  auto start = peer_start(8);
  start.source_rank = 3;
  EXPECT_FALSE(plan_entry(start, 0, {}));
  start.source = proto::StateSource::kInitial;
  EXPECT_FALSE(plan_entry(start, 0, {}));
  start.start_step = 0;
  EXPECT_EQ(*plan_entry(start, 0, {true, 5, true, "a"}), Entry::kInitial);
  start.source = proto::StateSource::kCheckpoint;
  start.start_step = 5;
  EXPECT_EQ(*plan_entry(start, 0, {true, 5, true, "a"}), Entry::kLoad);
}

}  // namespace
}  // namespace tessera::trainer
