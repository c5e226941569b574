#include "worker/trainer/audit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <set>

#include "worker/collective/tree_sum.h"

namespace tessera::trainer {
namespace {

using ::testing::HasSubstr;

TEST(Audit, EveryTileIsAuditedByEveryOtherRankInTurn) {
  for (const int tiles : {1, 3, 4, 8})
    for (const int world : {2, 3, 5, 8}) {
      std::map<TileIndex, std::set<Rank>> auditors;
      for (Step step = 0; step < 10 * tiles * world; ++step) {
        const auto plan = plan_audit(step, 10, tiles, world);
        ASSERT_EQ(plan.has_value(), step % 10 == 0);
        if (!plan) continue;
        const auto range = *collective::tile_range(tiles, world, plan->owner);
        EXPECT_TRUE(plan->tile >= range.begin && plan->tile < range.end);
        EXPECT_NE(plan->auditor, plan->owner);
        EXPECT_TRUE(plan->auditor >= 0 && plan->auditor < world);
        auditors[plan->tile].insert(plan->auditor);
      }
      ASSERT_EQ(int(auditors.size()), tiles);
      for (const auto& [tile, ranks] : auditors) EXPECT_EQ(int(ranks.size()), world - 1) << "tile " << tile << " of " << tiles << ", world " << world;
    }
}

TEST(Audit, NoneWithoutAPeerOrAnInterval) {
  EXPECT_FALSE(plan_audit(0, 10, 4, 1));
  EXPECT_FALSE(plan_audit(0, 0, 4, 3));
}

const StateDigest kRight{1, 2}, kWrong{3, 4}, kOther{5, 6};
const AuditPlan kPlan{3, 0, 1};

TEST(Audit, AWrongOwnerIsNamed) {
  const auto verdict = judge_audit(kPlan, 40, kWrong, kRight, {kWrong, kRight, kRight});
  EXPECT_EQ(verdict.suspect, 0);
  EXPECT_THAT(verdict.reason, HasSubstr("audit of tile 3 of step 40: rank 0"));
}
TEST(Audit, AWrongAuditorIsNamedEvenOfTwo) { EXPECT_EQ(judge_audit(kPlan, 40, kRight, kWrong, {kRight, kRight}).suspect, 1); }
TEST(Audit, AnErrorThatDoesNotComeAgainIsNamedToo) { EXPECT_EQ(judge_audit(kPlan, 40, kWrong, kRight, {kRight, kRight}).suspect, 0); }
TEST(Audit, WithoutAMajorityNobodyIsNamed) {
  EXPECT_EQ(judge_audit(kPlan, 40, kWrong, kRight, {kWrong, kRight}).suspect, -1);
  EXPECT_EQ(judge_audit(kPlan, 40, kWrong, kRight, {kOther, kRight, kWrong}).suspect, -1);
}

}  // namespace
}  // namespace tessera::trainer
