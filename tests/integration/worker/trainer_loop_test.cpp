// Whole trainers in one process, with their sockets and threads, against a coordinator and a loader that the test rules.
// The claim behind every story: the same ledger and the same state, whatever happened on the way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <condition_variable>
#include <filesystem>
#include <fstream>

#include "common/clock.h"
#include "tests/integration/worker/fakes.h"

namespace tessera::trainer::test {
namespace {

using ::testing::HasSubstr;

std::vector<WorkerId> workers(int count, int first = 0) {
  std::vector<WorkerId> out;
  for (int i = 0; i < count; ++i) out.push_back("node/" + std::to_string(first + i));
  return out;
}

// Holds the training thread of one rank at a place until released.
class Gate {
 public:
  void hold() {
    std::unique_lock lock(mutex_);
    held_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, std::chrono::seconds(30), [&] { return open_; });
  }
  bool held() {
    std::lock_guard lock(mutex_);
    return held_;
  }
  void open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false, open_ = false;
};

struct Story {
  explicit Story(const std::string& operation = "", const std::string& function_text = "")
      : function(tiny_function(function_text)), loader(function), coordinator(make_coordinator(operation)) {
    coordinator->loaders = {loader.share()};
  }
  ~Story() {
    coordinator->shut_down();
    trainers.clear();
    std::filesystem::remove_all(root);
  }
  std::unique_ptr<FakeCoordinator> make_coordinator(const std::string& operation_text) {
    char name[] = "/tmp/tessera-trainer-XXXXXX";
    root = mkdtemp(name);
    operation = tiny_operation(operation_text);
    return std::make_unique<FakeCoordinator>(function, operation, root);
  }
  void launch(const std::vector<WorkerId>& ids, const std::function<TrainerOptions(size_t)>& options = {}) {
    for (size_t i = 0; i < ids.size(); ++i) trainers.push_back(std::make_unique<TestTrainer>(ids[i], coordinator->port(), options ? options(i) : TrainerOptions{}));
    ASSERT_TRUE(coordinator->await_ready(trainers.size()));
  }
  // The last state's digest, when all of the generation stopped at the same boundary with the same state.
  StateDigest final_digest(const Generation& generation, size_t count) {
    EXPECT_TRUE(coordinator->pump([&] { return coordinator->all_sealed(generation, count); })) << "not all sealed";
    const auto& sealed = coordinator->sealed[generation];
    for (const auto& [id, s] : sealed) {
      EXPECT_EQ(s.applied, function.steps);
      EXPECT_EQ(s.state_digest, sealed.begin()->second.state_digest) << id;
    }
    return sealed.empty() ? StateDigest{} : sealed.begin()->second.state_digest;
  }

  FunctionConfig function;
  OperationConfig operation;
  std::string root;
  FakeLoader loader;
  std::unique_ptr<FakeCoordinator> coordinator;
  std::vector<std::unique_ptr<TestTrainer>> trainers;
};

struct Outcome {
  StateDigest state;
  std::map<Step, proto::StepDone> ledger;
};

Outcome outcome_of(Story& run, const Generation& last, size_t count) {
  Outcome out;
  out.state = run.final_digest(last, count);
  EXPECT_TRUE(run.coordinator->pump([&] { return run.coordinator->ledger.size() >= size_t(run.function.steps); })) << "the ledger has a gap";
  for (const auto& [step, reports] : run.coordinator->ledger) {
    out.ledger[step] = reports.front();
    for (const auto& report : reports) {
      EXPECT_EQ(report.state_digest, reports.front().state_digest) << "step " << step << " has two states";
      EXPECT_EQ(report.batch_digest, reports.front().batch_digest) << "step " << step << " has two batches";
      EXPECT_EQ(report.loss, reports.front().loss) << "step " << step << " has two losses";
    }
  }
  return out;
}

Outcome train_undisturbed(int world, const std::string& operation = "") {
  Story run(operation);
  run.launch(workers(world));
  const auto start = run.coordinator->start_world(workers(world));
  return outcome_of(run, start.generation, size_t(world));
}

const Outcome& reference() {
  static const Outcome outcome = train_undisturbed(1);
  return outcome;
}

void expect_reference(const Outcome& outcome) {
  const Outcome& want = reference();
  EXPECT_EQ(to_hex(outcome.state), to_hex(want.state));
  ASSERT_EQ(outcome.ledger.size(), want.ledger.size());
  for (const auto& [step, done] : want.ledger) {
    const auto& got = outcome.ledger.at(step);
    EXPECT_EQ(to_hex(got.state_digest), to_hex(done.state_digest)) << "step " << step;
    EXPECT_EQ(to_hex(got.gradient_digest), to_hex(done.gradient_digest)) << "step " << step;
    EXPECT_EQ(to_hex(got.batch_digest), to_hex(done.batch_digest)) << "step " << step;
    EXPECT_EQ(got.loss, done.loss) << "step " << step;
    EXPECT_EQ(got.gradient_norm, done.gradient_norm) << "step " << step;
    EXPECT_EQ(got.context_length, done.context_length) << "step " << step;
    EXPECT_EQ(got.grey_samples, done.grey_samples) << "step " << step;
  }
}

TEST(TrainerLoop, TheReferenceLearnsAndReports) {
  const Outcome& out = reference();
  ASSERT_EQ(out.ledger.size(), 6u);
  for (const auto& [step, done] : out.ledger) {
    EXPECT_GT(done.loss, 0);
    EXPECT_GT(done.gradient_norm, 0);
    EXPECT_EQ(done.images, 12);
    EXPECT_FALSE(done.skipped);
    EXPECT_EQ(done.grey_samples.size(), step == 2 ? 3u : 0u);
    if (step > 0) { EXPECT_FALSE(done.state_digest == out.ledger.at(step - 1).state_digest); }
  }
  EXPECT_GT(out.ledger.at(0).effective_rank, 1.0);
  EXPECT_EQ(out.ledger.at(1).effective_rank, 0.0);
}

TEST(TrainerLoop, TheSameBitsForAnyNumberOfRanksSparesToo) {
  for (const int world : {2, 3, 4, 7}) {
    SCOPED_TRACE(std::to_string(world) + " ranks");
    expect_reference(train_undisturbed(world));
  }
}

TEST(TrainerLoop, LocalAndBroadcastTargetsAgree) { expect_reference(train_undisturbed(3, "  ema_distribution: local\n")); }

// Passes everything on; what happens to the target's slices is the test's business.
class Watched : public collective::Collective {
 public:
  Watched(std::unique_ptr<collective::Collective> inner, std::function<Status()> before_gather) : inner_(std::move(inner)), before_gather_(std::move(before_gather)) {}
  Status exchange(const std::vector<collective::NodeBuffer>& nodes, int64_t n, float* result) override { return failed_ ? broken() : inner_->exchange(nodes, n, result); }
  Status sum_floats(float* data, int64_t n) override { return failed_ ? broken() : inner_->sum_floats(data, n); }
  Status sum_integers(int32_t* data, int64_t n) override { return failed_ ? broken() : inner_->sum_integers(data, n); }
  Status all_gather(float* data, int64_t n) override {
    if (const Status fine = before_gather_(); !fine) failed_ = true;
    return failed_ ? broken() : inner_->all_gather(data, n);
  }
  Status broadcast(void* data, int64_t size_bytes, Rank root) override { return inner_->broadcast(data, size_bytes, root); }
  void cancel() override { inner_->cancel(); }
  void quiesce() override { inner_->quiesce(); }
  Rank suspect() const override { return inner_->suspect(); }

 private:
  static Status broken() { return fail(ErrorCode::kRebuildWorld, "told to fail"); }
  std::unique_ptr<collective::Collective> inner_;
  std::function<Status()> before_gather_;
  bool failed_ = false;
};

// The slices are held back until the next step has begun: it does begin, and nobody reads the target before it is whole.
TEST(TrainerLoop, TheTargetArrivesWhileTheNextStepIsEvaluated) {
  for (const int world : {2, 3}) {
    Story run("  checkpoint: {every_steps: 3}\n");
    std::mutex mutex;
    std::condition_variable changed;
    std::map<size_t, Step> begun, gathered;
    int late = 0;
    run.launch(workers(world), [&](size_t i) {
      TrainerOptions options;
      options.at_point = [&, i](Point point, Step step) {
        if (point != Point::kBegin) return;
        std::lock_guard lock(mutex);
        begun[i] = step;
        changed.notify_all();
      };
      options.wrap_collective = [&, i](auto inner, const proto::WorldStart&, Rank) -> std::unique_ptr<collective::Collective> {
        return std::make_unique<Watched>(std::move(inner), [&, i]() -> Status {
          std::unique_lock lock(mutex);
          const Step next = ++gathered[i];
          // Behind the last step nothing begins, and a boundary with a snapshot waits for its target.
          if (next == run.function.steps || next == 3) return {};
          late += !changed.wait_for(lock, std::chrono::seconds(20), [&] { return begun[i] >= next; });
          lock.unlock();
          std::this_thread::sleep_for(std::chrono::milliseconds(20));  // so that whoever does not wait reads what is not there
          return {};
        });
      };
      return options;
    });
    const auto start = run.coordinator->start_world(workers(world));
    expect_reference(outcome_of(run, start.generation, size_t(world)));
    EXPECT_EQ(late, 0) << "the next step waited for the target";
    const auto read = checkpoint::read_checkpoint(run.coordinator->checkpoints[3], run.function);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->digest(), reference().ledger.at(3).state_digest) << "a snapshot has the whole target";
  }
}

// Cut off amid the slices: each rank computes what it lacks, and holds the state that it would have had.
TEST(TrainerLoop, ATargetCutOffInTheMiddleIsComputedByEveryRank) {
  Story run;
  run.launch(workers(3), [&](size_t i) {
    TrainerOptions options;
    if (i == 1)
      options.wrap_collective = [&](std::unique_ptr<collective::Collective> inner, const proto::WorldStart& start, Rank) -> std::unique_ptr<collective::Collective> {
        if (start.generation.number != 1) return inner;
        return std::make_unique<Watched>(std::move(inner), [count = 0]() mutable -> Status { return ++count == 3 ? Status(fail(ErrorCode::kRebuildWorld, "cut off")) : Status{}; });
      };
    return options;
  });
  const auto start = run.coordinator->start_world(workers(3));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->faults.contains("node/1"); }));
  run.coordinator->stop_world(start.generation, workers(3));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(start.generation, 3); }));
  for (const auto& [id, sealed] : run.coordinator->sealed[start.generation]) {
    EXPECT_EQ(sealed.applied, 3) << id;
    EXPECT_FALSE(sealed.prepared) << id;
    EXPECT_EQ(to_hex(sealed.state_digest), to_hex(reference().ledger.at(3).state_digest)) << id;
  }
  proto::WorldStart next;
  next.source = proto::StateSource::kPeer, next.start_step = 3, next.source_rank = 0;
  next = run.coordinator->start_world(workers(3), next);
  expect_reference(outcome_of(run, next.generation, 3));
}

// Integers: any ranges of tiles give the same bits, over a checkpoint and a joiner too; and it trains as the tree does.
constexpr const char* kFixed = "  reduction: fixed32\n";

Outcome train_with(int world, const std::string& function, const std::string& operation = "") {
  Story run(operation, function);
  run.launch(workers(world));
  const auto start = run.coordinator->start_world(workers(world));
  return outcome_of(run, start.generation, size_t(world));
}

void expect_same(const Outcome& outcome, const Outcome& want) {
  EXPECT_EQ(to_hex(outcome.state), to_hex(want.state));
  for (const auto& [step, done] : want.ledger) {
    EXPECT_EQ(to_hex(outcome.ledger.at(step).state_digest), to_hex(done.state_digest)) << "step " << step;
    EXPECT_EQ(to_hex(outcome.ledger.at(step).gradient_digest), to_hex(done.gradient_digest)) << "step " << step;
    EXPECT_EQ(outcome.ledger.at(step).loss, done.loss) << "step " << step;
  }
}

const Outcome& fixed_reference() {
  static const Outcome outcome = train_with(1, kFixed);
  return outcome;
}

TEST(TrainerLoop, IntegersGiveTheSameBitsForAnyNumberOfRanks) {
  const Outcome& one = fixed_reference();
  for (const auto& [step, done] : one.ledger) EXPECT_FALSE(done.skipped) << "step " << step;
  EXPECT_NE(to_hex(one.state), to_hex(reference().state)) << "they are not the tree's";
  EXPECT_NEAR(one.ledger.at(5).loss, reference().ledger.at(5).loss, 0.01 * reference().ledger.at(5).loss);
  for (const auto& [step, done] : one.ledger) EXPECT_NEAR(done.gradient_norm, reference().ledger.at(step).gradient_norm, 0.01 * done.gradient_norm);
  for (const int world : {2, 3, 4, 7}) {
    SCOPED_TRACE(std::to_string(world) + " ranks");
    expect_same(train_with(world, kFixed), one);
  }
  SCOPED_TRACE("audited");
  expect_same(train_with(3, kFixed, "  audit_every_steps: 1\n"), one);
}

TEST(TrainerLoop, IntegersResumeFromACheckpointAndFromAPeer) {
  Story first("  checkpoint: {every_steps: 2}\n", kFixed);
  first.launch(workers(3));
  proto::WorldStart start;
  start.stop_after = 4;
  start = first.coordinator->start_world(workers(3), start);
  ASSERT_TRUE(first.coordinator->pump([&] { return first.coordinator->all_sealed(start.generation, 3) && first.coordinator->checkpoints.contains(4); }));
  const auto read = checkpoint::read_checkpoint(first.coordinator->checkpoints[4], first.function);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(to_hex(read->digest()), to_hex(fixed_reference().ledger.at(4).state_digest)) << "exponents are saved";

  Story second("", kFixed);
  second.launch(workers(3));
  proto::WorldStart resume;
  resume.source = proto::StateSource::kCheckpoint, resume.start_step = 4, resume.stop_after = 5, resume.checkpoint_path = first.coordinator->checkpoints[4];
  resume = second.coordinator->start_world(workers(2), resume);
  ASSERT_TRUE(second.coordinator->pump([&] { return second.coordinator->all_sealed(resume.generation, 2); }));
  proto::WorldStart join;
  join.source = proto::StateSource::kPeer, join.start_step = 5, join.source_rank = 0;
  join = second.coordinator->start_world(workers(3), join);
  second.coordinator->ledger.insert(first.coordinator->ledger.begin(), first.coordinator->ledger.end());
  expect_same(outcome_of(second, join.generation, 3), fixed_reference());
}

// A tile whose gradient does not fit: the step is skipped by all ranks alike, and the exponent gives way so that the next fits.
TEST(TrainerLoop, WhatDoesNotFitIntegersSkipsTheStepWhateverTheRanks) {
  const auto train = [](int world) {
    Story run("", kFixed);
    run.launch(workers(world), [&](size_t) {
      TrainerOptions options;
      options.at_gradient = [calls = 0](TileIndex tile, model::FlatBuffers& gradient) mutable {
        if (tile == 3 && calls++ == 1) gradient[1].mutable_data_ptr<float>()[5] = 1e6f;  // the second time that somebody evaluates tile 3: step 1
      };
      return options;
    });
    const auto start = run.coordinator->start_world(workers(world));
    return outcome_of(run, start.generation, size_t(world));
  };
  const Outcome one = train(1);
  for (const auto& [step, done] : one.ledger) EXPECT_EQ(done.skipped, step == 1) << "step " << step;
  EXPECT_FALSE(one.ledger.at(2).state_digest == one.ledger.at(1).state_digest) << "the exponent is state, and gave way";
  for (const int world : {2, 3}) expect_same(train(world), one);
}

TEST(TrainerLoop, FastKeepsAllRanksEqualAndPromisesNoMore) {
  const std::string fast = "  reduction: fast\n";
  const Outcome one = train_with(1, fast);
  for (const int world : {2, 3, 7}) {
    const Outcome other = train_with(world, fast);  // which compares the ranks with each other
    for (const auto& [step, done] : one.ledger) {
      EXPECT_EQ(to_hex(other.ledger.at(step).batch_digest), to_hex(done.batch_digest));
      EXPECT_NEAR(other.ledger.at(step).loss, done.loss, 1e-3 * done.loss);
      EXPECT_NEAR(other.ledger.at(step).gradient_norm, done.gradient_norm, 1e-2 * done.gradient_norm);
    }
  }
}

TEST(TrainerLoop, ASnapshotOfThreeResumesWithTwo) {
  std::string checkpoint;
  Story first("  checkpoint: {every_steps: 2}\n");
  first.launch(workers(3));
  proto::WorldStart start;
  start.stop_after = 4;
  start = first.coordinator->start_world(workers(3), start);
  ASSERT_TRUE(first.coordinator->pump([&] { return first.coordinator->all_sealed(start.generation, 3) && first.coordinator->checkpoints.contains(4); }));
  EXPECT_TRUE(first.coordinator->checkpoints.contains(2));
  EXPECT_EQ(first.coordinator->attempts.size(), 2u) << "the boundary at the end is written once";

  Story second;
  second.launch(workers(2));
  proto::WorldStart resume;
  resume.source = proto::StateSource::kCheckpoint;
  resume.start_step = 4;
  resume.checkpoint_path = first.coordinator->checkpoints[4];
  resume = second.coordinator->start_world(workers(2), resume);
  second.coordinator->ledger = first.coordinator->ledger;
  expect_reference(outcome_of(second, resume.generation, 2));
}

TEST(TrainerLoop, ABadCheckpointIsReportedAndNotTrainedOn) {
  Story run;
  run.launch(workers(2));
  std::filesystem::create_directories(run.root + "/step-4");
  std::ofstream(run.root + "/step-4/manifest.json") << "{";
  proto::WorldStart start;
  start.source = proto::StateSource::kCheckpoint, start.start_step = 4, start.checkpoint_path = run.root + "/step-4";
  start = run.coordinator->start_world(workers(2), start);
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->faults.size() == 2; }));
  for (const auto& [id, fault] : run.coordinator->faults) EXPECT_TRUE(fault.bad_checkpoint) << fault.reason;
  run.coordinator->stop_world(start.generation, workers(2));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(start.generation, 2); }));
  for (const auto& [id, sealed] : run.coordinator->sealed[start.generation]) EXPECT_EQ(sealed.applied, -1);
  const auto again = run.coordinator->start_world(workers(2));
  expect_reference(outcome_of(run, again.generation, 2));
}

// Stopped in the middle, one member gone, a joiner instead: it gets the state over the mesh.
TEST(TrainerLoop, AJoinerReceivesTheStateFromASurvivor) {
  Story run;
  run.launch(workers(3));
  const auto first = run.coordinator->start_world(workers(2));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->ledger.size() >= 3; }));
  run.coordinator->stop_world(first.generation, workers(2));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(first.generation, 2); }));
  const auto& sealed = run.coordinator->sealed[first.generation].at("node/1");
  proto::WorldStart next;
  next.source = proto::StateSource::kPeer;
  next.start_step = sealed.applied, next.source_rank = 0, next.expected_digest = sealed.state_digest;
  next = run.coordinator->start_world({"node/1", "node/2"}, next);
  expect_reference(outcome_of(run, next.generation, 2));
}

// Rank 0 is held before its vote, rank 1 has voted: rank 1 must keep the step, and finish it and the ledger alone.
TEST(TrainerLoop, AVotedStepRollsForwardWithoutRankZero) {
  Gate gate;
  Story run;
  run.launch(workers(2), [&](size_t i) {
    TrainerOptions options;
    if (i == 0)
      options.at_point = [&](Point point, Step step) {
        if (point == Point::kBeforeVote && step == 3) gate.hold();
      };
    return options;
  });
  const auto first = run.coordinator->start_world(workers(2));
  ASSERT_TRUE(run.coordinator->pump([&] { return gate.held() && run.coordinator->statuses["node/1"].phase == proto::Phase::kVote && run.coordinator->statuses["node/1"].step == 3; }));
  run.coordinator->stop_world(first.generation, {"node/1"});
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(first.generation, 1); }));
  const proto::Sealed sealed = run.coordinator->sealed[first.generation].at("node/1");
  EXPECT_EQ(sealed.applied, 3);
  EXPECT_TRUE(sealed.prepared);
  EXPECT_EQ(sealed.gradient_digest, reference().ledger.at(3).gradient_digest);
  proto::WorldStart next;
  next.source = proto::StateSource::kPeer, next.start_step = 4, next.source_rank = 0;
  next = run.coordinator->start_world({"node/1"}, next);
  const Outcome outcome = outcome_of(run, next.generation, 1);
  gate.open();
  expect_reference(outcome);
}

// The same, but nobody can have applied the step: the coordinator drops it and it is evaluated again.
TEST(TrainerLoop, ADroppedStepIsEvaluatedAgainToTheSameBits) {
  Story run;
  run.launch(workers(2));
  const auto first = run.coordinator->start_world(workers(2));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->ledger.size() >= 2; }));
  run.coordinator->stop_world(first.generation, workers(2));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(first.generation, 2); }));
  Step applied = 0;
  for (const auto& [id, sealed] : run.coordinator->sealed[first.generation]) applied = std::max(applied, sealed.applied);
  Rank source = 0;
  for (const auto& [id, sealed] : run.coordinator->sealed[first.generation])
    if (sealed.applied == applied) source = id == "node/0" ? 0 : 1;
  proto::WorldStart next;
  next.source = proto::StateSource::kPeer, next.start_step = applied, next.source_rank = source;
  next = run.coordinator->start_world(workers(2), next);
  expect_reference(outcome_of(run, next.generation, 2));
}

TEST(TrainerLoop, UnequalGradientsStopTheWorldBeforeTheStepIsApplied) {
  Story run;
  const size_t buckets = model::Layout::make(run.function).buckets.size();
  run.launch(workers(3), [&](size_t i) {
    TrainerOptions options;
    if (i == 2)
      options.wrap_collective = [&](auto inner, const proto::WorldStart& start, Rank) {
        return start.generation.number == 1 ? collective::make_faulty(std::move(inner), collective::Misbehaviour::kFlipBit, int64_t(2 * buckets + 1)) : std::move(inner);
      };
    return options;
  });
  const auto start = run.coordinator->start_world(workers(3));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->faults.size() == 3; }));
  for (const auto& [id, fault] : run.coordinator->faults) {
    EXPECT_TRUE(fault.digests_differ);
    EXPECT_EQ(fault.step, 2);
    EXPECT_EQ(fault.suspect, 2);
    EXPECT_THAT(fault.reason, HasSubstr("gradient of step 2"));
  }
  run.coordinator->stop_world(start.generation, workers(3));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(start.generation, 3); }));
  for (const auto& [id, sealed] : run.coordinator->sealed[start.generation]) {
    EXPECT_EQ(sealed.applied, 2);
    EXPECT_FALSE(sealed.prepared);
    EXPECT_EQ(sealed.state_digest, reference().ledger.at(2).state_digest);
  }
  proto::WorldStart next;
  next.source = proto::StateSource::kPeer, next.start_step = 2, next.source_rank = 0;
  next = run.coordinator->start_world(workers(2), next);
  expect_reference(outcome_of(run, next.generation, 2));
}

// One bit of one replica flips: found in the vote for the step, before anybody applies it, and healed from a peer.
void expect_named_and_healed(int world, Point when, bool moments, Step found_at) {
  Story run;
  run.launch(workers(world), [&](size_t i) {
    TrainerOptions options;
    if (i == 1)
      options.at_state = [=, done = false](Point point, model::State& state) mutable {
        if (point != when || state.step != 2 || std::exchange(done, true)) return;
        float* value = (moments ? state.exp_avg : state.weights)[1].mutable_data_ptr<float>();
        *value = std::bit_cast<float>(std::bit_cast<uint32_t>(*value) ^ (1u << 12));
      };
    return options;
  });
  const auto start = run.coordinator->start_world(workers(world));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->faults.size() == size_t(world); }));
  for (const auto& [id, fault] : run.coordinator->faults) {
    EXPECT_TRUE(fault.digests_differ) << fault.reason;
    EXPECT_EQ(fault.step, found_at) << fault.reason;
    EXPECT_EQ(fault.suspect, 1) << fault.reason;
  }
  run.coordinator->stop_world(start.generation, workers(world));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(start.generation, size_t(world)); }));
  EXPECT_EQ(run.coordinator->sealed[start.generation].at("node/0").applied, found_at);
  EXPECT_FALSE(run.coordinator->sealed[start.generation].at("node/0").prepared);
  // The named one comes back without its state, as the process that its daemon starts would.
  run.coordinator->send("node/1", proto::Shutdown{"fenced", 82});
  run.trainers[1].reset();
  run.trainers[1] = std::make_unique<TestTrainer>("node/1", run.coordinator->port(), TrainerOptions{});
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->ready["node/1"] >= 2; }));
  proto::WorldStart next;
  next.source = proto::StateSource::kPeer, next.start_step = found_at, next.source_rank = 0;
  next = run.coordinator->start_world(workers(world), next);
  expect_reference(outcome_of(run, next.generation, size_t(world)));
}

TEST(TrainerLoop, AFlippedWeightIsFoundInTheVoteForItsStep) { expect_named_and_healed(3, Point::kBegin, false, 2); }
TEST(TrainerLoop, OfTwoRanksTheOneThatChangedIsNamed) { expect_named_and_healed(2, Point::kBegin, false, 2); }
TEST(TrainerLoop, AFlippedMomentIsFoundInTheNextVote) { expect_named_and_healed(3, Point::kBeforeVote, true, 3); }

TEST(TrainerLoop, AnAuditNamesTheDeviceThatComputesWrong) {
  Story run("  audit_every_steps: 2\n");
  run.launch(workers(3), [&](size_t i) {
    TrainerOptions options;
    if (i == 0) options.at_gradient = [](TileIndex, model::FlatBuffers& gradient) { gradient[0].mutable_data_ptr<float>()[3] += 1e-6f; };
    return options;
  });
  run.coordinator->start_world(workers(3));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->faults.size() == 3; }));
  for (const auto& [id, fault] : run.coordinator->faults) {
    EXPECT_TRUE(fault.digests_differ);
    EXPECT_EQ(fault.step, 0);
    EXPECT_EQ(fault.suspect, 0) << fault.reason;
    EXPECT_THAT(fault.reason, HasSubstr("audit of tile 0 of step 0: rank 0 computed another gradient"));
  }
}

TEST(TrainerLoop, AuditsChangeNoBit) {
  for (const int world : {2, 3, 5}) {
    Story run("  audit_every_steps: 1\n");
    run.launch(workers(world));
    const auto start = run.coordinator->start_world(workers(world));
    expect_reference(outcome_of(run, start.generation, size_t(world)));
    EXPECT_TRUE(run.coordinator->faults.empty());
  }
}

TEST(TrainerLoop, AShareOfADeadRankIsWrittenByTheOneThatHoldsIt) {
  Gate gate;
  Story run("  checkpoint: {every_steps: 2}\n");
  run.coordinator->drop_file = [](const proto::CheckpointFile& file) { return file.step == 2 && file.rank == 1; };  // as if it died before it said so
  run.launch(workers(3), [&](size_t i) {
    TrainerOptions options;
    if (i == 2) options.at_point = [&](Point point, Step step) { if (point == Point::kBegin && step == 3) gate.hold(); };
    return options;
  });
  const auto start = run.coordinator->start_world(workers(3));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->dropped_files == 1; }));
  run.coordinator->drop_file = {};
  EXPECT_FALSE(run.coordinator->checkpoints.contains(2));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(run.root))
    if (entry.path().filename() == "state-00001-of-00003.safetensors" && entry.path().string().find("-2/") != std::string::npos) std::filesystem::resize_file(entry.path(), 100);  // half written
  run.coordinator->send("node/0", proto::WriteShare{start.generation, 2, 1});
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->checkpoints.contains(2); }));
  gate.open();
  const auto read = checkpoint::read_checkpoint(run.coordinator->checkpoints[2], run.function);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->digest(), reference().ledger.at(2).state_digest);
}

TEST(TrainerLoop, AnInfiniteGradientSkipsTheStepOnEveryRank) {
  Story run;
  run.launch(workers(2), [&](size_t) {
    TrainerOptions options;
    options.wrap_collective = [&](auto inner, const proto::WorldStart&, Rank) {
      return collective::make_faulty(std::move(inner), collective::Misbehaviour::kInfinite, int64_t(model::Layout::make(run.function).buckets.size()));
    };
    return options;
  });
  const auto start = run.coordinator->start_world(workers(2));
  const Outcome out = outcome_of(run, start.generation, 2);
  ASSERT_EQ(out.ledger.size(), 6u);
  for (const auto& [step, done] : out.ledger) EXPECT_EQ(done.skipped, step == 1);
  EXPECT_EQ(out.ledger.at(2).state_digest, out.ledger.at(1).state_digest) << "weights, moments, target and Adam's count stay as they were";
  EXPECT_FALSE(out.ledger.at(3).state_digest == out.ledger.at(2).state_digest);
  EXPECT_NE(to_hex(out.state), to_hex(reference().state));
}

TEST(TrainerLoop, ADirectiveStopsAllAtOneBoundaryWithACheckpoint) {
  Story run;
  Gate gate;
  run.launch(workers(3), [&](size_t i) {
    TrainerOptions options;
    if (i == 0)
      options.at_point = [&](Point point, Step step) {
        if (point == Point::kBeforeVote && step == 1) gate.hold();
      };
    return options;
  });
  const auto start = run.coordinator->start_world(workers(3));
  ASSERT_TRUE(run.coordinator->pump([&] { return gate.held(); }));
  run.coordinator->send("node/0", proto::WorldDirective{start.generation, 3, true, "drain"});
  ASSERT_TRUE(run.coordinator->pump([&] { return true; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  gate.open();
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->all_sealed(start.generation, 3); }));
  for (const auto& [id, sealed] : run.coordinator->sealed[start.generation]) EXPECT_EQ(sealed.applied, 3);
  EXPECT_TRUE(run.coordinator->checkpoints.contains(3)) << "written before the ranks say that they stopped";
  proto::WorldStart next;
  next.source = proto::StateSource::kPeer, next.start_step = 3, next.source_rank = 1;
  next = run.coordinator->start_world(workers(3), next);
  expect_reference(outcome_of(run, next.generation, 3));
}

// The coordinator goes away and comes back on the same port: training goes on, no report is lost.
TEST(TrainerLoop, TrainingGoesOnWithoutACoordinator) {
  Story run;
  run.launch(workers(2));
  const int port = run.coordinator->port();
  const auto start = run.coordinator->start_world(workers(2));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.coordinator->started[start.generation].size() == 2; }));
  run.coordinator->acknowledge = false;
  run.coordinator.reset();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  run.coordinator = std::make_unique<FakeCoordinator>(run.function, run.operation, run.root, port);
  run.coordinator->loaders = {run.loader.share()};
  expect_reference(outcome_of(run, start.generation, 2));
  EXPECT_GE(run.coordinator->hellos.at("node/0").applied, 1) << "the new hello says what is held";
}

TEST(TrainerLoop, AFullDiskCostsTheCheckpointNotTheRun) {
  Story run("  checkpoint: {every_steps: 2}\n");
  std::ofstream(run.root + "/.attempt-1-1-2") << "a file where the attempt's folder should be";
  run.launch(workers(2));
  const auto start = run.coordinator->start_world(workers(2));
  expect_reference(outcome_of(run, start.generation, 2));
  EXPECT_EQ(run.coordinator->checkpoint_failures.size(), 2u);
  EXPECT_FALSE(run.coordinator->checkpoints.contains(2));
  EXPECT_TRUE(run.coordinator->checkpoints.contains(4));
}

TEST(TrainerLoop, DataThatCannotBeServedEndsTheTrainerWithItsCode) {
  Story run;
  run.launch(workers(1));
  run.loader.behave.fatal_code = 65;
  run.coordinator->start_world(workers(1));
  ASSERT_TRUE(run.coordinator->pump([&] { return !run.coordinator->goodbyes.empty(); }));
  EXPECT_EQ(run.coordinator->goodbyes.at("node/0").exit_code, 65);
  EXPECT_THAT(run.coordinator->goodbyes.at("node/0").reason, HasSubstr("shard 3 is damaged"));
  ASSERT_TRUE(run.coordinator->pump([&] { return run.trainers[0]->exit_code() >= 0; }));
  EXPECT_EQ(run.trainers[0]->exit_code(), 65);
}

TEST(TrainerLoop, CommandsOfAnOlderGenerationAreLeftAlone) {
  Story run;
  run.launch(workers(1));
  proto::WorldStart start;
  start.generation = {2, 5};
  start = run.coordinator->start_world(workers(1), start);
  run.coordinator->stop_world({2, 4}, workers(1));
  run.coordinator->stop_world({1, 9}, workers(1));
  proto::WorldStart old;
  old.generation = {1, 10};
  run.coordinator->start_world(workers(1), old);
  expect_reference(outcome_of(run, start.generation, 1));
  EXPECT_FALSE(run.coordinator->sealed.contains({2, 4}));
  EXPECT_FALSE(run.coordinator->started.contains({1, 10}));
}

}  // namespace
}  // namespace tessera::trainer::test
