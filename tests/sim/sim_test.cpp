// Whole clusters under virtual time. A failure prints the command that replays it.
#include <cstdlib>
#include <gtest/gtest.h>

#include "tests/sim/cluster.h"

namespace tessera::sim {
namespace {

TEST(Simulation, EveryStepIsCommittedOnceWhateverDies) {
  const uint64_t seeds = std::getenv("TESSERA_FULL") ? 20000 : 300;
  int64_t faults = 0;
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    Options options;
    options.seed = seed;
    options.workers = 1 + int(seed % 5);
    options.faults_per_second = seed % 7 == 0 ? 0.0 : 0.3 + double(seed % 4) * 0.4;
    const Outcome out = simulate(options);
    faults += out.faults;
    ASSERT_TRUE(out.ok) << out.violation << "\nreplay: tessera-sim --seed " << seed << " --workers " << options.workers << " --faults " << options.faults_per_second << " --trace";
    ASSERT_EQ(out.committed, options.steps);
  }
  EXPECT_GT(faults, int64_t(seeds));  // the cluster was in trouble
}

TEST(Simulation, ReplaysBitForBit) {
  Options options;
  options.seed = 5;
  options.trace = true;
  EXPECT_EQ(simulate(options).trace, simulate(options).trace);
}

// What is left of a failure's faults still fails, and none of them can go.
TEST(Simulation, AFailureShrinksToTheFaultsThatItNeeds) {
  Options options;
  options.bug = Bug::kStaleGradient;
  options.faults_per_second = 1.2;
  while (simulate(options).ok && options.seed < 400) ++options.seed;
  const size_t before = draw_faults(options).size();
  const std::vector<Fault> few = shrink(options);
  EXPECT_LT(few.size(), before);
  options.faults = few;
  EXPECT_FALSE(simulate(options).ok);
  for (size_t i = 0; i < few.size(); ++i) {
    options.faults = few;
    options.faults->erase(options.faults->begin() + int64_t(i));
    EXPECT_TRUE(simulate(options).ok) << describe(few[i]) << " was not needed";
  }
}

// The simulator must see what it is there for.
class PlantedBug : public testing::TestWithParam<Bug> {};

TEST_P(PlantedBug, IsFound) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Options options;
    options.seed = seed;
    options.workers = 3;
    options.faults_per_second = 1.2;
    options.deadline_ms = 120000;
    options.bug = GetParam();
    if (!simulate(options).ok) return;
  }
  FAIL() << "400 seeds did not find the planted bug";
}
INSTANTIATE_TEST_SUITE_P(All, PlantedBug, testing::Values(Bug::kApplyBeforeAllVotes, Bug::kForgetGeneration, Bug::kReuseTerm, Bug::kStaleGradient, Bug::kAnswerBeforeStore, Bug::kReportBeforeWrite));

}  // namespace
}  // namespace tessera::sim
