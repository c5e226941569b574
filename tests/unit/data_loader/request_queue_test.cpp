// The loader's request queue: peers in turn, bounded memory, cancels.
#include "data_loader/server/request_queue.h"

#include <gtest/gtest.h>

namespace tessera::data {
namespace {

Request tile(uint64_t id) { return proto::TileRequest{id, 0, 0, 100, ""}; }

TEST(RequestQueue, PeersTakeTurns) {
  RequestQueue queue;
  for (uint64_t id = 0; id < 4; ++id) EXPECT_EQ(queue.add("a", tile(id), 100, 0), "");
  for (uint64_t id = 10; id < 12; ++id) EXPECT_EQ(queue.add("b", tile(id), 100, 0), "");
  std::string order;
  while (const auto work = queue.start()) order += work->peer;
  EXPECT_EQ(order, "ababaa");
}

TEST(RequestQueue, APeerThatTakesNothingCostsABoundedAmount) {
  QueueLimits limits;
  limits.unsent_bytes_per_peer = 250, limits.unsent_bytes = 1000, limits.requests_per_peer = 50;
  RequestQueue queue(limits);
  for (uint64_t id = 0; id < 50; ++id) EXPECT_EQ(queue.add("dead", tile(id), 100, 0), "");
  EXPECT_NE(queue.add("dead", tile(50), 100, 0), "") << "the 51st is refused";
  int started = 0;
  while (queue.start()) ++started;
  EXPECT_EQ(started, 3) << "below 250 bytes one more may begin";
  EXPECT_EQ(queue.add("alive", tile(1), 100, 0), "");
  auto work = queue.start();
  ASSERT_TRUE(work);
  EXPECT_EQ(work->peer, "alive");
  queue.finish("alive", work->ticket);
  EXPECT_EQ(queue.unsent_bytes(), 300);
  EXPECT_TRUE(queue.stalled(limits.stalled_ms).empty());
  EXPECT_EQ(queue.stalled(limits.stalled_ms + 1), std::vector<std::string>{"dead"});
  queue.progress("dead", limits.stalled_ms);
  EXPECT_TRUE(queue.stalled(limits.stalled_ms + 1).empty());
  queue.forget("dead");
  EXPECT_EQ(queue.unsent_bytes(), 0);
  EXPECT_EQ(queue.outstanding(), 0u);
}

TEST(RequestQueue, ManyPeersTogetherAreBoundedToo) {
  QueueLimits limits;
  limits.unsent_bytes_per_peer = 1000, limits.unsent_bytes = 2000;
  RequestQueue queue(limits);
  for (int peer = 0; peer < 100; ++peer) queue.add("p" + std::to_string(peer), tile(1), 300, 0);
  int started = 0;
  while (queue.start()) ++started;
  EXPECT_EQ(started, 7);
}

TEST(RequestQueue, CancelledRequestsAreNotWanted) {
  RequestQueue queue;
  queue.add("a", tile(1), 100, 0);
  queue.add("a", tile(2), 100, 0);
  const auto first = queue.start();
  queue.cancel("a", 1);
  EXPECT_FALSE(queue.wanted("a", first->ticket));
  EXPECT_EQ(queue.unsent_bytes(), 0);
  queue.cancel("a", 2);
  EXPECT_FALSE(queue.start());
  EXPECT_EQ(queue.outstanding(), 0u);
  queue.cancel("nobody", 3);
  queue.finish("nobody", 3);
  // The same id again, after a cancel, is another request: an old answer is not taken for it.
  queue.add("a", tile(1), 100, 0);
  const auto again = queue.start();
  EXPECT_FALSE(queue.wanted("a", first->ticket));
  EXPECT_TRUE(queue.wanted("a", again->ticket));
}

}  // namespace
}  // namespace tessera::data
