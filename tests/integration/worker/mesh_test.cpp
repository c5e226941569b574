// The mesh over real loopback sockets, with peers that die, stop or lag.
#include "worker/collective/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <numeric>
#include <thread>

#include "common/clock.h"

namespace tessera::collective {
namespace {

using ::testing::HasSubstr;
constexpr Millis kConnectMs = 10000;

struct Ends {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  std::vector<MeshPeer> peers;
  explicit Ends(int world) {
    for (Rank r = 0; r < world; ++r) {
      listeners.push_back(*MeshListener::open("127.0.0.1"));
      peers.push_back({r, "127.0.0.1:" + std::to_string(listeners.back()->port()), uint64_t(100 + r)});
    }
  }
  Result<std::unique_ptr<Mesh>> connect(Rank r, AbortSignal& abort, Generation generation = {1, 1}, Millis timeout_ms = kConnectMs, const std::string& run = "run") {
    return Mesh::connect(*listeners[size_t(r)], run, generation, r, peers, abort, timeout_ms);
  }
};

// Rank 1 as a process of its own: connects, then `life`. Rank 0 is this process.
template <typename Life>
pid_t fork_rank_1(Ends& ends, const Life& life) {
  const pid_t child = fork();
  if (child != 0) return child;
  AbortSignal abort;
  auto mesh = ends.connect(1, abort);
  if (mesh) life(**mesh);
  _exit(mesh ? 0 : 1);
}

void end_child(pid_t child) {
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

std::vector<std::vector<Piece>> to_rank_1(std::vector<char>& bytes) { return {{}, {{bytes.data(), bytes.size()}}}; }
std::vector<std::vector<Piece>> nothing() { return {{}, {}}; }

TEST(Mesh, MovesManyBuffersOfAllSizesBothWaysAtOnce) {
  constexpr int kWorld = 5;
  Ends ends(kWorld);
  std::vector<std::string> errors(kWorld);
  {
    std::vector<std::jthread> threads;
    for (Rank r = 0; r < kWorld; ++r)
      threads.emplace_back([&, r] {
        AbortSignal abort;
        auto mesh = ends.connect(r, abort);
        if (!mesh) return void(errors[size_t(r)] = mesh.error().message);
        const std::vector<size_t> sizes{0, 1, 7, 4096, 3000000, 0, 65537};
        std::vector<std::vector<std::vector<char>>> sent(kWorld), got(kWorld);
        std::vector<std::vector<Piece>> out(kWorld), in(kWorld);
        for (Rank peer = 0; peer < kWorld; ++peer) {
          if (peer == r) continue;
          for (const size_t size : sizes) {
            sent[size_t(peer)].emplace_back(size, char(16 * r + peer));
            got[size_t(peer)].emplace_back(size, char(-1));
          }
          for (size_t i = 0; i < sizes.size(); ++i) {
            out[size_t(peer)].push_back({sent[size_t(peer)][i].data(), sizes[i]});
            in[size_t(peer)].push_back({got[size_t(peer)][i].data(), sizes[i]});
          }
        }
        if (auto done = (*mesh)->transfer(out, in, 10000); !done) return void(errors[size_t(r)] = done.error().message);
        for (Rank peer = 0; peer < kWorld; ++peer)
          for (const auto& buffer : got[size_t(peer)])
            for (const char c : buffer)
              if (c != char(16 * peer + r)) return void(errors[size_t(r)] = "wrong bytes from rank " + std::to_string(peer));
      });
  }
  for (const auto& error : errors) EXPECT_EQ(error, "");
}

TEST(Mesh, APeerKilledInMidTransferIsNamedAtOnce) {
  Ends ends(2);
  const pid_t child = fork_rank_1(ends, [](Mesh&) { pause(); });  // never reads: the transfer is stuck in the middle
  AbortSignal abort;
  auto mesh = ends.connect(0, abort);
  ASSERT_TRUE(mesh) << mesh.error().message;
  std::atomic<Millis> killed_at = 0;
  std::jthread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    killed_at = monotonic_ms();
    kill(child, SIGKILL);
  });
  std::vector<char> bytes(64 << 20);
  const auto done = (*mesh)->transfer(to_rank_1(bytes), nothing(), 0);
  ASSERT_FALSE(done);
  EXPECT_LT(monotonic_ms() - killed_at, 2000);
  EXPECT_EQ(done.error().code, ErrorCode::kRebuildWorld);
  EXPECT_THAT(done.error().message, HasSubstr("rank 1 is gone"));
  EXPECT_EQ((*mesh)->suspect(), 1);
  const Millis before = monotonic_ms();
  EXPECT_FALSE((*mesh)->transfer(to_rank_1(bytes), nothing(), 0)) << "the streams are out of step: nothing may move any more";
  EXPECT_LT(monotonic_ms() - before, 50);
  end_child(child);
}

TEST(Mesh, AStoppedPeerIsNamedAfterTheDeadline) {
  Ends ends(2);
  const pid_t child = fork_rank_1(ends, [](Mesh&) { raise(SIGSTOP); });
  AbortSignal abort;
  auto mesh = ends.connect(0, abort);
  ASSERT_TRUE(mesh) << mesh.error().message;
  char answer = 0;
  std::vector<std::vector<Piece>> in{{}, {{&answer, 1}}};
  const Millis before = monotonic_ms();
  const auto done = (*mesh)->transfer(nothing(), in, 300);
  const Millis took = monotonic_ms() - before;
  ASSERT_FALSE(done);
  EXPECT_GE(took, 300);
  EXPECT_LT(took, 3000);
  EXPECT_THAT(done.error().message, HasSubstr("nothing from rank 1 for 300 ms"));
  EXPECT_EQ((*mesh)->suspect(), 1);
  end_child(child);
}

TEST(Mesh, AbortFromAnotherThreadEndsATransferAtOnce) {
  Ends ends(2);
  const pid_t child = fork_rank_1(ends, [](Mesh&) { pause(); });
  AbortSignal abort;
  auto mesh = ends.connect(0, abort);
  ASSERT_TRUE(mesh) << mesh.error().message;
  std::atomic<Millis> raised_at = 0;
  std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    raised_at = monotonic_ms();
    abort.raise();
  });
  std::vector<char> bytes(64 << 20);
  const auto done = (*mesh)->transfer(to_rank_1(bytes), nothing(), 0);
  ASSERT_FALSE(done);
  EXPECT_GE(monotonic_ms(), raised_at);
  EXPECT_LT(monotonic_ms() - raised_at, 90) << "not through the poll's own turn of 100 ms";
  EXPECT_EQ((*mesh)->suspect(), -1) << "nobody is to blame";
  abort.clear();
  EXPECT_FALSE((*mesh)->transfer(to_rank_1(bytes), nothing(), 0));
  end_child(child);
}

TEST(Mesh, AbortEndsConnecting) {
  Ends ends(2);
  for (const Rank r : {0, 1}) {
    AbortSignal abort;
    std::jthread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      abort.raise();
    });
    const Millis before = monotonic_ms();
    EXPECT_FALSE(ends.connect(r, abort));
    EXPECT_LT(monotonic_ms() - before, 3000) << "rank " << r;
  }
}

TEST(Mesh, MissingRanksAreNamed) {
  Ends ends(3);
  AbortSignal abort;
  const auto mesh = ends.connect(0, abort, {1, 1}, 200);
  ASSERT_FALSE(mesh);
  EXPECT_THAT(mesh.error().message, HasSubstr("ranks 1, 2 did not connect within 200 ms"));
}

// Two ranks meet only in the same run, generation and incarnations.
TEST(Mesh, ForeignConnectionsAreNotTaken) {
  struct Case {
    std::string run;
    Generation generation;
    uint64_t incarnation;
    bool meets;
  };
  for (const Case& c : {Case{"run", {1, 1}, 101, true}, Case{"other", {1, 1}, 101, false}, Case{"run", {1, 2}, 101, false}, Case{"run", {2, 1}, 101, false}, Case{"run", {1, 1}, 999, false}}) {
    Ends ends(2);
    AbortSignal abort_0, abort_1;
    bool met = false;
    std::jthread other([&] {
      auto peers = ends.peers;
      peers[1].incarnation = c.incarnation;
      (void)Mesh::connect(*ends.listeners[1], c.run, c.generation, 1, peers, abort_1, 300);
    });
    met = ends.connect(0, abort_0, {1, 1}, 300).has_value();
    EXPECT_EQ(met, c.meets) << c.run << " " << to_string(c.generation) << " " << c.incarnation;
  }
}

// A survivor may dial before its peer has entered the new generation: it dials again.
TEST(Mesh, AnEarlyRankWaitsForALateOne) {
  Ends ends(2);
  std::jthread late([&] {
    AbortSignal abort;
    EXPECT_FALSE(ends.connect(0, abort, {1, 1}, 150)) << "the older generation must not meet the newer one";
    EXPECT_TRUE(ends.connect(0, abort, {1, 2}));
  });
  AbortSignal abort;
  const auto mesh = ends.connect(1, abort, {1, 2});
  EXPECT_TRUE(mesh) << mesh.error().message;
}

}  // namespace
}  // namespace tessera::collective
