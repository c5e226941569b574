#include "ops/cli/start_rule.h"

#include <gtest/gtest.h>
#include <set>

namespace tessera::cli {
namespace {

StartRequest request(StartMode mode, Step goal = 30) { return {mode, "tessera up a.yaml", "a", "runs/a", "f1", goal}; }
const auto kNothing = [](const std::string&) { return false; };
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(StartRule, NoRunYetStarts) {
  for (const StartMode mode : {StartMode::kUnspecified, StartMode::kFresh}) {
    const auto decision = decide_start(request(mode), {}, kNothing);
    ASSERT_TRUE(decision);
    EXPECT_EQ(decision->action, StartAction::kStartNew);
    EXPECT_EQ(decision->run_dir, "runs/a");
  }
}

TEST(StartRule, NothingToResumeIsSaid) {
  const auto decision = decide_start(request(StartMode::kResume), {}, kNothing);
  ASSERT_FALSE(decision);
  EXPECT_EQ(exit_code_of(decision.error()), 64);
  EXPECT_TRUE(has(decision.error().message, "runs/a")) << decision.error().message;
}

TEST(StartRule, UnfinishedRunIsRefusedWithBothCommands) {
  const auto decision = decide_start(request(StartMode::kUnspecified), {true, "", 12, "f1"}, kNothing);
  ASSERT_FALSE(decision);
  EXPECT_EQ(exit_code_of(decision.error()), 64);
  for (const char* part : {"tessera up a.yaml --resume", "tessera up a.yaml --fresh", "step 12 of 30"}) EXPECT_TRUE(has(decision.error().message, part)) << decision.error().message;
}

TEST(StartRule, UnfinishedRunResumesWhenAsked) {
  for (const Step newest : {Step{-1}, Step{0}, Step{29}}) {
    const auto decision = decide_start(request(StartMode::kResume), {true, "", newest, "f1"}, kNothing);
    ASSERT_TRUE(decision);
    EXPECT_EQ(decision->action, StartAction::kResume);
  }
}

TEST(StartRule, FinishedRunIsShown) {
  for (const StartMode mode : {StartMode::kUnspecified, StartMode::kResume}) {
    const auto decision = decide_start(request(mode), {true, "", 30, "f1"}, kNothing);
    ASSERT_TRUE(decision);
    EXPECT_EQ(decision->action, StartAction::kShowSummary);
  }
}

TEST(StartRule, ARunStoppedAtItsFlagIsUnfinishedForALongerGoal) {
  EXPECT_EQ(decide_start(request(StartMode::kResume, 12), {true, "", 12, "f1"}, kNothing)->action, StartAction::kShowSummary);
  EXPECT_EQ(decide_start(request(StartMode::kResume, 30), {true, "", 12, "f1"}, kNothing)->action, StartAction::kResume);
}

TEST(StartRule, FreshTakesTheFirstFreeName) {
  const std::set<std::string> taken{"runs/a", "runs/a-2", "runs/a-3"};
  const auto decision = decide_start(request(StartMode::kFresh), {true, "", 30, "f1"}, [&](const std::string& path) { return taken.contains(path); });
  ASSERT_TRUE(decision);
  EXPECT_EQ(decision->run_dir, "runs/a-4");
  EXPECT_EQ(decision->run_id, "a-4");
}

TEST(StartRule, ARunningOneIsNeverStartedTwice) {
  for (const StartMode mode : {StartMode::kUnspecified, StartMode::kResume}) {
    const auto decision = decide_start(request(mode), {true, "http://127.0.0.1:1", 12, "f1"}, kNothing);
    ASSERT_FALSE(decision);
    EXPECT_TRUE(has(decision.error().message, "running already")) << decision.error().message;
  }
}

TEST(StartRule, AnotherFunctionIsAnotherRun) {
  for (const StartMode mode : {StartMode::kUnspecified, StartMode::kResume})
    for (const Step newest : {Step{12}, Step{30}}) {
      const auto decision = decide_start(request(mode), {true, "", newest, "f2"}, kNothing);
      ASSERT_FALSE(decision);
      EXPECT_TRUE(has(decision.error().message, "f1") && has(decision.error().message, "f2")) << decision.error().message;
    }
}

}  // namespace
}  // namespace tessera::cli
