#include "worker/trainer/report.h"

#include <gtest/gtest.h>

#include <limits>

namespace tessera::trainer {
namespace {

TEST(DescribeStep, SumsInTileOrderAndSaysWhatWasSkipped) {
  StepFacts facts;
  facts.step = 12;
  facts.tiles = {{0.5, 0, {1, 2}, 9, 0}, {0.25, 7.5, {3, 4}, 9, 1}, {1e-17, 0, {5, 6}, 10, 0}};
  facts.grey_samples = {77};
  facts.state = {8, 9}, facts.gradient = {10, 11};
  facts.summary = {false, 3.5};
  const proto::StepDone done = describe_step(facts, {2, 3}, "lineage", {0.1, 0.2, 0.3}, 48);
  EXPECT_EQ(done.step, 12);
  EXPECT_EQ(done.generation, (Generation{2, 3}));
  EXPECT_EQ(done.loss, (0.5 + 0.25 + 1e-17) / 3.0);
  EXPECT_EQ(done.batch_digest, (StateDigest{9, 12}));
  EXPECT_EQ(done.state_digest, (StateDigest{8, 9}));
  EXPECT_EQ(done.gradient_digest, (StateDigest{10, 11}));
  EXPECT_EQ(done.context_length, 9) << "of the first mask group";
  EXPECT_EQ(done.effective_rank, 7.5);
  EXPECT_TRUE(done.skipped);
  EXPECT_EQ(done.images, 48);
  EXPECT_EQ(done.grey_samples, (std::vector<SampleId>{77}));
  EXPECT_EQ(done.lr, 0.1);
}

}  // namespace
}  // namespace tessera::trainer
