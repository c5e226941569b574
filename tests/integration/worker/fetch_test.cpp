// The fetch thread against loaders that lie, lag and die.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/clock.h"
#include "tests/integration/worker/fakes.h"

namespace tessera::trainer::test {
namespace {

using ::testing::HasSubstr;

class FetchTest : public ::testing::Test {
 protected:
  void begin(const std::vector<const FakeLoader*>& loaders, int64_t budget_tiles = 100) {
    fetcher_ = std::make_unique<Fetcher>(function_, budget_tiles * tile_pixel_bytes(function_), "w");
    assign(loaders);
  }
  void assign(const std::vector<const FakeLoader*>& loaders) {
    proto::ShardAssignment assignment;
    for (const auto* loader : loaders) assignment.loaders.push_back(loader->share());
    fetcher_->set_loaders(assignment);
  }
  void expect_tile(Step step, TileIndex tile) {
    const auto got = fetcher_->take(step, tile, abort_);
    ASSERT_TRUE(got) << got.error().message;
    const FetchedTile want = make_tile(function_, step, tile);
    EXPECT_EQ(got->header.digest, want.header.digest) << "step " << step << ", tile " << tile;
    EXPECT_EQ(got->pixels, want.pixels);
  }
  void expect_steps(Step first, Step end, TileRange tiles) {
    for (Step step = first; step < end; ++step)
      for (TileIndex tile = tiles.begin; tile < tiles.end; ++tile) expect_tile(step, tile);
  }

  FunctionConfig function_ = tiny_function();
  collective::AbortSignal abort_;
  std::unique_ptr<Fetcher> fetcher_;
};

TEST_F(FetchTest, EachTileIsAskedForOnce) {
  FakeLoader loader(function_);
  begin({&loader});
  fetcher_->want(0, 5, {2, 5});
  expect_steps(0, 5, {2, 5});
  EXPECT_EQ(loader.requests(), 15);
}

TEST_F(FetchTest, ABudgetOfTwoTilesIsEnough) {
  FakeLoader loader(function_);
  begin({&loader}, 2);
  fetcher_->want(0, 4, {0, 6});
  expect_steps(0, 4, {0, 6});
}

// The tile that is needed next was lost while later ones filled the budget.
TEST_F(FetchTest, AFullBudgetNeverLocksOutTheNextTile) {
  FakeLoader loader(function_);
  loader.behave.errors = 1;  // of the very first request
  begin({&loader}, 2);
  fetcher_->want(0, 3, {0, 6});
  std::this_thread::sleep_for(std::chrono::milliseconds(150));  // the others arrive
  expect_steps(0, 3, {0, 6});
}

TEST_F(FetchTest, DamagedAnswersAreAskedForAgain) {
  for (auto damage : {&FakeLoader::Behaviour::damage_pixels, &FakeLoader::Behaviour::damage_header, &FakeLoader::Behaviour::errors}) {
    FakeLoader loader(function_);
    loader.behave.*damage = 2;
    begin({&loader});
    fetcher_->want(0, 3, {0, 3});
    expect_steps(0, 3, {0, 3});
    EXPECT_EQ(loader.requests(), 9 + 2);
  }
}

TEST_F(FetchTest, DuplicatesAreHarmless) {
  FakeLoader loader(function_);
  loader.behave.duplicate = 5;
  begin({&loader});
  fetcher_->want(0, 3, {0, 3});
  expect_steps(0, 3, {0, 3});
}

TEST_F(FetchTest, ASilentLoaderIsReplacedByTheOther) {
  FakeLoader silent(function_, "a"), good(function_, "b");
  silent.behave.silent = true;
  begin({&silent, &good});
  fetcher_->want(0, 3, {0, 4});
  const Millis before = monotonic_ms();
  expect_steps(0, 3, {0, 4});
  EXPECT_GT(silent.requests(), 0) << "it must have been asked, or the test shows nothing";
  EXPECT_LT(monotonic_ms() - before, 10000);
}

TEST_F(FetchTest, AnAnswerCutInTheMiddleIsAskedForElsewhere) {
  FakeLoader cut(function_, "a"), good(function_, "b");
  cut.behave.stop_in_middle = 1000;
  begin({&cut, &good});
  fetcher_->want(0, 2, {0, 3});
  expect_steps(0, 2, {0, 3});
}

TEST_F(FetchTest, AFatalErrorStopsWithItsCodeAndSentence) {
  FakeLoader loader(function_);
  loader.behave.fatal_code = 65;
  begin({&loader});
  fetcher_->want(0, 3, {0, 3});
  const auto got = fetcher_->take(0, 0, abort_);
  ASSERT_FALSE(got);
  EXPECT_EQ(exit_code_of(got.error()), 65);
  EXPECT_THAT(got.error().message, HasSubstr("shard 3 is damaged"));
}

// A damaged shard at one loader is no reason to stop while another has a good copy.
TEST_F(FetchTest, ATileThatOneLoaderRefusesIsAskedForElsewhere) {
  FakeLoader damaged(function_, "a"), good(function_, "b");
  damaged.behave.fatal_code = 65;
  begin({&damaged, &good});
  fetcher_->want(0, 3, {0, 4});
  expect_steps(0, 3, {0, 4});
  EXPECT_GT(damaged.requests(), 0) << "it must have been asked, or the test shows nothing";
  EXPECT_EQ(damaged.requests() + good.requests(), 12 + damaged.requests()) << "each refused tile is asked for once more";
}

TEST_F(FetchTest, ATileThatAllLoadersRefuseIsFatal) {
  FakeLoader one(function_, "a"), two(function_, "b");
  one.behave.fatal_code = 65, two.behave.fatal_code = 65;
  begin({&one, &two});
  fetcher_->want(0, 3, {0, 4});
  const auto got = fetcher_->take(0, 0, abort_);
  ASSERT_FALSE(got);
  EXPECT_EQ(exit_code_of(got.error()), 65);
}

TEST_F(FetchTest, SharedMemoryThatIsNotThereFallsBackToFrames) {
  FakeLoader loader(function_);
  loader.behave.share_nothing = 1000;
  begin({&loader});
  fetcher_->want(0, 3, {0, 3});
  expect_steps(0, 3, {0, 3});
  EXPECT_LE(loader.requests(), 18) << "after the first failure it is asked for frames";
}

// Many tiles are asked of a slow loader at once: those at the end of its queue are not late while it delivers.
TEST_F(FetchTest, AQueueOfASlowLoaderIsNotLate) {
  FakeLoader one(function_, "a"), two(function_, "b");
  one.behave.delay_ms = two.behave.delay_ms = 120;
  begin({&one, &two});
  fetcher_->want(0, 3, {0, 6});
  expect_steps(0, 3, {0, 6});
  EXPECT_EQ(one.requests() + two.requests(), 18);
}

TEST_F(FetchTest, AnAbortEndsTheWait) {
  FakeLoader loader(function_);
  loader.behave.silent = true;
  begin({&loader});
  fetcher_->want(0, 3, {0, 3});
  std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    abort_.raise();
  });
  const Millis before = monotonic_ms();
  const auto got = fetcher_->take(0, 0, abort_);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, ErrorCode::kRebuildWorld);
  EXPECT_LT(monotonic_ms() - before, 500);
}

// A loader comes while the training thread already waits for a tile.
TEST_F(FetchTest, ALoaderThatComesLaterIsUsedAtOnce) {
  begin({});
  fetcher_->want(0, 2, {0, 2});
  FakeLoader loader(function_);
  std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    assign({&loader});
  });
  expect_steps(0, 2, {0, 2});
}

// After a world change the rank has other tiles, and the step may be evaluated again.
TEST_F(FetchTest, ANewWishReplacesTheOld) {
  FakeLoader loader(function_);
  begin({&loader});
  fetcher_->want(0, 6, {0, 3});
  expect_steps(0, 2, {0, 3});
  fetcher_->want(1, 6, {2, 6});
  expect_steps(1, 6, {2, 6});
  EXPECT_GE(loader.requests_of(1, 2), 2) << "evaluated again";
}

}  // namespace
}  // namespace tessera::trainer::test
