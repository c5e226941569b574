// The coordinator's decisions, one event at a time.
#include "coordinator/machine.h"

#include <algorithm>
#include <csignal>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/version.h"

namespace tessera::coordinator {
namespace {

namespace p = tessera::proto;
using ::testing::HasSubstr;

const p::BuildInfo kBuild{kVersion, "", kProtocolVersion};

// A run with a loader, one node daemon and its workers, in a running world unless said otherwise.
struct Group {
  MachineConfig config;
  State state;
  Millis now = 1000;
  Effects effects;  // of the last event

  explicit Group(int workers) {
    config.function.batch.tile_size = 1, config.function.batch.tiles = 4, config.function.steps = 100;
    config.operation.checkpoint.every_steps = 0;
    config.run_id = "run", config.lineage = "run", config.term = 1;
    say("loader", 1, p::LoaderHello{"loader", "h", kBuild, 1, "tcp://x"});
    say("loader", 1, p::LoaderDataset{{1, 2}, 400, 4, "f", "", 0});
    p::DaemonHello hello{"h", kBuild, 1, {}};
    for (int i = 0; i < workers; ++i) hello.slots.push_back({id(i), "cpu"});
    say("daemon:n", 1, hello);
    for (int i = 0; i < workers; ++i) join(i);
    start_world();
  }
  static WorkerId id(int i) { return "n/" + std::to_string(i); }
  void join(int i) {
    incarnation[i] += 2;
    say(id(i), incarnation[i], p::TrainerHello{id(i), "h", kBuild, 100 + i, "cpu", "class", "mesh:" + std::to_string(i), 0, {}, -1});
    say(id(i), incarnation[i], p::TrainerReady{});
  }
  void start_world() {
    for (int i = 0; i < 50 && state.world.phase != WorldPhase::kRunning; ++i) {
      const World world = state.world;
      if (world.phase == WorldPhase::kStarting)
        for (const auto& m : world.members) say(m.worker_id, m.incarnation, p::WorldStarted{world.generation, world.start_step, {}});
      tick(500);
    }
    ASSERT_EQ(state.world.phase, WorldPhase::kRunning);
  }
  void say(const std::string& who, uint64_t of, p::Payload payload) { feed(MessageEvent{who + "#" + std::to_string(of), who, of, std::move(payload)}); }
  void feed(const Event& event) { effects = step(state, config, event, now); }
  // Time passes, all who live say that they do.
  void tick(Millis ms, bool heard = true) {
    for (Millis end = now + ms; now < end;) {
      now += 50;
      if (heard) {
        say("daemon:n", 1, p::DaemonStatus{});
        say("loader", 1, p::LoaderStatus{});
        for (const auto& m : state.world.members)
          if (state.workers[m.worker_id].state != WorkerState::kGone) say(m.worker_id, m.incarnation, p::TrainerStatus{state.world.generation, m.rank, 0, p::Phase::kData, 0, 0.1, 0, 0.2});
      }
      feed(TickEvent{});
    }
  }
  void die(int i, int signal, int exit_code, const std::string& cause) { say("daemon:n", 1, p::TrainerExited{id(i), incarnation[i], exit_code, signal, cause, true}); }
  template <typename T>
  std::vector<T> sent(const std::string& to = "") const {
    std::vector<T> out;
    for (const auto& effect : effects)
      if (const auto* send = std::get_if<Send>(&effect); send && (to.empty() || send->peer.starts_with(to)))
        if (const auto* message = std::get_if<T>(&send->payload)) out.push_back(*message);
    return out;
  }
  std::map<int, uint64_t> incarnation;
};

TEST(Machine, AStepThatCrashesItsTrainerThreeTimesEndsTheRun) {
  Group run(1);
  for (int i = 0; i < 3; ++i) {
    ASSERT_FALSE(run.state.finished) << "after " << i;
    run.die(0, SIGSEGV, -1, "killed by SIGSEGV");
    if (!run.state.finished) run.join(0), run.start_world();
  }
  ASSERT_TRUE(run.state.finished);
  EXPECT_EQ(run.state.run_state, RunState::kFailed);
  EXPECT_THAT(run.state.reason, HasSubstr("step 0 ended its trainer 3 times (killed by SIGSEGV), the last time n/0, rank 0 of 1, which had about tiles 0 to 3"));
}

// One kind of device always; other devices of the kind only where the function promises no bits.
TEST(Machine, MixedDevicesAreRefusedOrAllowedAndSaidSo) {
  const auto hello = [](Group& run, const std::string& numerics_class) { run.say("n/1", 9, p::TrainerHello{"n/1", "h", kBuild, 7, "cuda:1", numerics_class, "mesh:9", 0, {}, -1}); };
  for (const char* reduction : {"tree", "fast"}) {
    SCOPED_TRACE(reduction);
    Group run(1);
    run.config.function.reduction = reduction;
    run.state.numerics_class = "cuda;model=NVIDIA H200;sm=132";
    hello(run, "cpu;model=EPYC");
    ASSERT_EQ(run.sent<p::Refused>("n/1").size(), 1u);
    EXPECT_THAT(run.sent<p::Refused>("n/1")[0].reason, HasSubstr("computes on cpu, the run on cuda"));
    hello(run, "cuda;model=NVIDIA H100;sm=132");
    const auto refused = run.sent<p::Refused>("n/1");
    if (reduction == std::string("tree")) {
      ASSERT_EQ(refused.size(), 1u);
      EXPECT_THAT(refused[0].reason, HasSubstr("function.reduction: fast"));
    } else {
      EXPECT_TRUE(refused.empty());
      EXPECT_TRUE(run.state.workers.contains("n/1"));
    }
  }
}

p::StepDone step_done(Step step, uint64_t batch, uint64_t state) {
  p::StepDone done;
  done.lineage = "run", done.step = step;
  done.batch_digest = {batch, 1}, done.state_digest = {state, 1};
  return done;
}

// A step evaluated again to another state accuses a device, unless the function promises no bits; another batch always does.
TEST(Machine, OtherBitsOfAStepAccuseADeviceUnlessTheReductionAllowsThem) {
  for (const char* reduction : {"tree", "fixed32", "fast"}) {
    SCOPED_TRACE(reduction);
    Group run(2);
    run.config.function.reduction = reduction;
    const auto report = [&](const p::StepDone& done) { run.say(Group::id(0), run.incarnation[0], done); };
    report(step_done(0, 5, 6)), report(step_done(1, 7, 8));
    report(step_done(1, 7, 8));
    EXPECT_FALSE(run.state.finished);
    report(step_done(1, 7, 9));
    const bool fast = std::string(reduction) == "fast";
    EXPECT_EQ(run.state.finished, !fast) << run.state.reason;
    EXPECT_EQ(run.state.ledger.at(1).state.a, 8u) << "what is committed never changes";
    EXPECT_EQ(placement_caveat(run.config.function).empty(), !fast);
    if (!fast) continue;
    EXPECT_THAT(run.state.alerts.back().reason, HasSubstr("step 1 was evaluated again to other bits"));
    report(step_done(0, 5, 9));
    EXPECT_EQ(run.state.alerts.size(), 1u) << "said once";
    report(step_done(1, 70, 8));
    EXPECT_TRUE(run.state.finished) << "another batch";
  }
}

TEST(Machine, KillsFromOutsideAreNoFailureOfTheStep) {
  Group run(1);
  for (int i = 0; i < 10; ++i) {
    run.die(0, SIGKILL, -1, "killed by SIGKILL");
    run.join(0), run.start_world();
  }
  EXPECT_FALSE(run.state.finished);
}

TEST(Machine, AWorkerThatDiffersThreeTimesIsRefused) {
  Group run(3);
  for (int i = 0; i < 3; ++i) {
    const World world = run.state.world;
    run.say(Group::id(0), run.incarnation[0], p::WorldFault{world.generation, Step(i), "audit " + std::to_string(i), 2, true, false});
    if (i == 2) {
      const auto refused = run.sent<p::Refused>(Group::id(2));
      ASSERT_EQ(refused.size(), 1u);
      EXPECT_EQ(refused[0].exit_code, exit_codes::kDeviceFaulty);
      EXPECT_THAT(refused[0].reason, HasSubstr("worker n/2 gave other results than its peers 3 times"));
      return;
    }
    EXPECT_TRUE(run.sent<p::Refused>().empty());
    EXPECT_EQ(run.sent<p::FenceTrainer>().size(), 1u);
    for (int w : {0, 1}) run.say(Group::id(w), run.incarnation[w], p::Sealed{world.generation, 5, false, {}, {}});
    run.say("daemon:n", 1, p::TrainerFenced{Group::id(2), run.incarnation[2]});
    run.start_world();
    run.join(2);
    run.tick(400);
    for (const auto& m : World(run.state.world).members) run.say(m.worker_id, m.incarnation, p::Sealed{run.state.world.generation, 5, false, {}, {}});
    run.start_world();
    ASSERT_EQ(run.state.world.members.size(), 3u);
  }
}

TEST(Machine, SilenceOfEverybodyIsTheCoordinatorsOwnForAWhile) {
  Group run(2);
  const Generation generation = run.state.world.generation;
  run.tick(10000, false);
  EXPECT_EQ(run.state.world.generation, generation);
  EXPECT_EQ(run.state.world.phase, WorldPhase::kRunning);
  EXPECT_THAT(run.state.reason, HasSubstr("this host may be cut off"));
  run.tick(10000, false);
  EXPECT_NE(run.state.world.phase, WorldPhase::kRunning) << "in the end it is taken at its word";
}

TEST(Machine, ACoordinatorThatStoodStillBlamesNobody) {
  Group run(2);
  run.now += 60000;
  run.feed(TickEvent{});
  run.tick(300);
  EXPECT_EQ(run.state.world.phase, WorldPhase::kRunning);
  for (const auto& [id, worker] : run.state.workers) EXPECT_EQ(worker.state, WorkerState::kRunning) << id;
}

TEST(Machine, SurvivorsHearOfTheChangesOnlyAndComeToTheSameList) {
  Group run(3);
  const World before = run.state.world;
  run.die(1, SIGKILL, -1, "killed by SIGKILL");
  for (int w : {0, 2}) run.say(Group::id(w), run.incarnation[w], p::Sealed{before.generation, 7, false, {}, {}});
  const auto starts = run.sent<p::WorldStart>();
  ASSERT_EQ(starts.size(), 2u);
  for (const auto& start : starts) {
    ASSERT_TRUE(start.base);
    EXPECT_EQ(*start.base, before.generation);
    EXPECT_TRUE(start.members.empty());
    EXPECT_THAT(start.removed, testing::ElementsAre("n/1"));
    const auto full = p::expand(start, before.members);
    ASSERT_EQ(full.members.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(full.members[i].worker_id, run.state.world.members[i].worker_id);
      EXPECT_EQ(full.members[i].rank, run.state.world.members[i].rank);
      EXPECT_EQ(full.members[i].incarnation, run.state.world.members[i].incarnation);
    }
  }
}

TEST(Machine, WhatIsNotAnsweredIsSaidAgain) {
  Group run(2);
  run.die(1, SIGKILL, -1, "killed by SIGKILL");
  EXPECT_EQ(run.sent<p::WorldStop>(Group::id(0)).size(), 1u);
  int again = 0;
  for (int i = 0; i < 30; ++i) {
    run.now += 50;
    run.feed(TickEvent{});
    again += int(run.sent<p::WorldStop>(Group::id(0)).size());
  }
  EXPECT_EQ(again, 1) << "after a second";
}

TEST(Machine, APausedRunStaysPausedUntilItIsTold) {
  Group run(2);
  run.feed(PauseCommand{true});
  ASSERT_EQ(run.sent<p::WorldDirective>().size(), 1u);
  EXPECT_TRUE(run.sent<p::WorldDirective>()[0].checkpoint);
  const World world = run.state.world;
  for (int w : {0, 1}) run.say(Group::id(w), run.incarnation[w], p::Sealed{world.generation, 3, false, {}, {}});
  run.tick(3000);
  EXPECT_EQ(run.state.run_state, RunState::kPaused);
  run.feed(PauseCommand{false});
  EXPECT_EQ(run.sent<p::WorldStart>().size(), 2u);
  EXPECT_EQ(run.state.world.start_step, 3);
}

TEST(Machine, ANoteIsAnEventAndAWarningAnAlertToo) {
  Group run(1);
  run.feed(NoteCommand{"info", "probe at step 40"});
  EXPECT_TRUE(run.state.alerts.empty());
  run.feed(NoteCommand{"warning", "the run has collapsed"});
  ASSERT_EQ(run.state.alerts.size(), 1u);
  EXPECT_EQ(run.state.alerts[0].reason, "the run has collapsed");
  ASSERT_FALSE(run.effects.empty());
  EXPECT_EQ(std::get<LogEvent>(run.effects[0]).text, "the run has collapsed");
}

}  // namespace
}  // namespace tessera::coordinator
