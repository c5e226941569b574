#include "worker/trainer/exchanger.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace tessera::trainer {
namespace {

TEST(Exchanger, WorksInOrderAndWaitSeesAllOfIt) {
  for (const auto where : {Exchanger::Where::kOwnThread, Exchanger::Where::kHere}) {
    Exchanger exchanger(where);
    std::vector<int> done;
    for (int round = 0; round < 50; ++round) {
      for (int i = 0; i < 10; ++i) exchanger.submit([&, i]() -> Status { return done.push_back(round * 10 + i), Status{}; });
      ASSERT_TRUE(exchanger.wait());
      ASSERT_EQ(done.size(), size_t(10 * (round + 1)));
    }
    for (size_t i = 0; i < done.size(); ++i) EXPECT_EQ(done[i], int(i));
  }
}

TEST(Exchanger, AfterAnErrorNothingBeginsAndEveryWaitSaysSo) {
  for (const auto where : {Exchanger::Where::kOwnThread, Exchanger::Where::kHere}) {
    Exchanger exchanger(where);
    std::atomic<int> begun = 0;
    exchanger.submit([&]() -> Status { return ++begun, Status{}; });
    exchanger.submit([&]() -> Status { return ++begun, fail(ErrorCode::kRebuildWorld, "a peer is gone"); });
    exchanger.submit([&]() -> Status { return ++begun, Status{}; });
    for (int i = 0; i < 2; ++i) {
      const Status done = exchanger.wait();
      ASSERT_FALSE(done);
      EXPECT_EQ(done.error().message, "a peer is gone");
    }
    exchanger.submit([&]() -> Status { return ++begun, Status{}; });
    EXPECT_FALSE(exchanger.wait());
    EXPECT_EQ(begun, 2);
  }
}

TEST(Exchanger, WhatIsThrownIsAnError) {
  Exchanger exchanger(Exchanger::Where::kOwnThread);
  exchanger.submit([]() -> Status { throw std::runtime_error("out of memory"); });
  const Status done = exchanger.wait();
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("out of memory"), std::string::npos);
}

TEST(Exchanger, WhatWasSubmittedEndsBeforeItsThreadDoes) {
  int done = 0;
  {
    Exchanger exchanger(Exchanger::Where::kOwnThread);
    for (int i = 0; i < 100; ++i) exchanger.submit([&]() -> Status { return ++done, Status{}; });
  }
  EXPECT_EQ(done, 100);
}

}  // namespace
}  // namespace tessera::trainer
