// Real sockets on the loopback interface. Waits have generous deadlines and end on the event they wait for.
#include "proto/channel.h"

#include <gtest/gtest.h>
#include <zmq.h>

#include <atomic>
#include <optional>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>

#include "common/clock.h"
#include "common/version.h"
#include "proto/codec.h"

namespace tessera::proto {
namespace {

constexpr int kDeadlineMs = 20000;

ChannelOptions named(const std::string& sender) {
  ChannelOptions options;
  options.sender = sender;
  return options;
}
std::string address_of(const Server& server) { return "127.0.0.1:" + std::to_string(server.port()); }

// The next message of either end, at most kDeadlineMs away.
template <typename End>
std::optional<Incoming> next(End& end) {
  const Millis deadline = monotonic_ms() + kDeadlineMs;
  while (monotonic_ms() < deadline)
    if (auto incoming = end.receive(100)) return incoming;
  return std::nullopt;
}
// Lets the server look at what arrives until the condition holds.
template <typename Condition>
bool until(Server& server, Condition condition) {
  const Millis deadline = monotonic_ms() + kDeadlineMs;
  while (!condition() && monotonic_ms() < deadline) (void)server.receive(20);
  return condition();
}

struct Channel : testing::Test {
  Server server = Server::bind("127.0.0.1", 0, named("coordinator")).value();
  Client client = Client::connect(address_of(server), named("worker")).value();

  // A DEALER that sends what it likes.
  struct Raw {
    void* context = zmq_ctx_new();
    void* socket = zmq_socket(context, ZMQ_DEALER);
    explicit Raw(const Server& to) {
      const int none = 0;
      zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
      zmq_connect(socket, ("tcp://" + address_of(to)).c_str());
    }
    ~Raw() { zmq_close(socket), zmq_ctx_term(context); }
    void send(const std::string& bytes, bool more = false) { zmq_send(socket, bytes.data(), bytes.size(), more ? ZMQ_SNDMORE : 0); }
  };
};

TEST_F(Channel, CarriesMessagesBothWaysWithTheirEnvelope) {
  TrainerHello greeting;
  greeting.worker_id = "node-a/0";
  ASSERT_TRUE(client.send(greeting));
  auto hello = next(server);
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->envelope.sender, "worker");
  EXPECT_EQ(hello->envelope.incarnation, client.incarnation());
  EXPECT_EQ(hello->envelope.protocol, kProtocolVersion);
  EXPECT_EQ(hello->envelope.sequence, 1u);
  EXPECT_EQ(std::get<TrainerHello>(hello->envelope.payload).worker_id, "node-a/0");
  ASSERT_TRUE(server.send(hello->peer, Shutdown{"done", 0}));
  auto answer = next(client);
  ASSERT_TRUE(answer);
  EXPECT_EQ(std::get<Shutdown>(answer->envelope.payload).reason, "done");
  EXPECT_EQ(server.counters().received, 1u);
  EXPECT_EQ(server.counters().sent, 1u);
}

TEST_F(Channel, RawPartsAreNotCopiedAndLiveUntilSent) {
  ASSERT_TRUE(client.send(TileRequest{}));
  const auto request = next(server);
  ASSERT_TRUE(request);
  auto released = std::make_shared<std::atomic<bool>>(false);
  auto pixels = std::shared_ptr<std::string>(new std::string(1 << 20, 'p'), [released](std::string* p) { *released = true, delete p; });
  ASSERT_TRUE(server.send(request->peer, TileFrame{1, 0, 0}, {pixels->data(), pixels->size(), pixels}));
  pixels.reset();
  const auto frame = next(client);
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->raw, std::string(1 << 20, 'p'));
  const Millis deadline = monotonic_ms() + kDeadlineMs;
  while (!*released && monotonic_ms() < deadline) std::this_thread::yield();
  EXPECT_TRUE(*released) << "the owner is never released";
}

TEST_F(Channel, UnknownPeersAreUnavailable) {
  const Status status = server.send("nobody", Shutdown{});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(server.counters().undeliverable, 1u);
  // And the socket is not left in the middle of a message.
  ASSERT_TRUE(client.send(TrainerReady{}));
  const auto ready = next(server);
  ASSERT_TRUE(ready);
  ASSERT_TRUE(server.send(ready->peer, Shutdown{}));
  EXPECT_TRUE(next(client));
}

TEST_F(Channel, FullQueuesAreRetryAndNeverBlock) {
  ChannelOptions options = named("slow");
  options.high_water_mark = 10;
  Server small = Server::bind("127.0.0.1", 0, options).value();
  Client slow = Client::connect(address_of(small), options).value();
  ASSERT_TRUE(slow.send(TrainerReady{}));
  const auto ready = next(small);
  ASSERT_TRUE(ready);
  Status status;
  const std::string text(1 << 16, 'x');
  for (int i = 0; i < 100000 && status; ++i) status = small.send(ready->peer, Shutdown{text, 0});
  ASSERT_FALSE(status) << "100000 messages fitted a queue of 10";
  EXPECT_EQ(status.error().code, ErrorCode::kRetry);
  Client nobody = Client::connect("127.0.0.1:1", options).value();
  status = {};
  for (int i = 0; i < 1000 && status; ++i) status = nobody.send(TrainerReady{});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kRetry);
}

TEST_F(Channel, MalformedMessagesAreDroppedAndCounted) {
  Raw raw(server);
  raw.send("not protobuf");
  raw.send("");
  raw.send(encode({kProtocolVersion, "tessera", "", "x", 1, 1, TrainerReady{}}), true), raw.send("raw", true), raw.send("one too many");
  ASSERT_TRUE(until(server, [&] { return server.counters().malformed == 3; })) << server.counters().malformed;
  raw.send(encode({kProtocolVersion, "tessera", "", "x", 1, 2, TrainerReady{}}));
  const auto good = next(server);
  ASSERT_TRUE(good);
  EXPECT_EQ(good->envelope.sender, "x");
}

TEST_F(Channel, ForeignClustersAndRunsAreDroppedAndCounted) {
  server.set_run_id("mine");
  Raw raw(server);
  raw.send(encode({kProtocolVersion, "other", "", "x", 1, 1, TrainerReady{}}));
  raw.send(encode({kProtocolVersion, "tessera", "theirs", "x", 1, 2, TrainerReady{}}));
  ASSERT_TRUE(until(server, [&] { return server.counters().foreign == 2; }));
  raw.send(encode({kProtocolVersion, "tessera", "", "unwelcomed", 1, 3, TrainerReady{}}));
  raw.send(encode({kProtocolVersion, "tessera", "mine", "member", 1, 4, TrainerReady{}}));
  EXPECT_EQ(next(server)->envelope.sender, "unwelcomed");
  EXPECT_EQ(next(server)->envelope.sender, "member");
}

TEST_F(Channel, AnotherProtocolVersionIsRefusedWith84) {
  Raw raw(server);
  raw.send(encode({kProtocolVersion + 1, "tessera", "", "x", 1, 1, TrainerHello{}}));
  ASSERT_TRUE(until(server, [&] { return server.counters().foreign == 1; }));
  char answer[4096];
  const int timeout_ms = kDeadlineMs;
  zmq_setsockopt(raw.socket, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
  const int size = zmq_recv(raw.socket, answer, sizeof answer, 0);
  ASSERT_GT(size, 0);
  const auto refused = decode({answer, size_t(size)});
  ASSERT_TRUE(refused);
  EXPECT_EQ(std::get<Refused>(refused->payload).exit_code, exit_codes::kVersionMismatch);
  EXPECT_NE(std::get<Refused>(refused->payload).reason.find("protocol " + std::to_string(kProtocolVersion)), std::string::npos);
}

TEST_F(Channel, AClientThatMeetsAnotherVersionIsTold) {
  void* context = zmq_ctx_new();
  void* router = zmq_socket(context, ZMQ_ROUTER);
  const int timeout_ms = kDeadlineMs, none = 0;
  zmq_setsockopt(router, ZMQ_RCVTIMEO, &timeout_ms, sizeof timeout_ms);
  zmq_setsockopt(router, ZMQ_LINGER, &none, sizeof none);
  ASSERT_EQ(zmq_bind(router, "tcp://127.0.0.1:*"), 0);
  char endpoint[128], identity[64], content[4096];
  size_t length = sizeof endpoint;
  zmq_getsockopt(router, ZMQ_LAST_ENDPOINT, endpoint, &length);
  Client newcomer = Client::connect(endpoint, named("worker")).value();
  ASSERT_TRUE(newcomer.send(TrainerHello{}));
  const int identity_size = zmq_recv(router, identity, sizeof identity, 0);
  ASSERT_EQ(identity_size, int(sizeof(uint64_t)));
  ASSERT_GT(zmq_recv(router, content, sizeof content, 0), 0);
  const std::string answer = encode({kProtocolVersion + 7, "tessera", "", "coordinator", 1, 1, Shutdown{}});
  zmq_send(router, identity, size_t(identity_size), ZMQ_SNDMORE);
  zmq_send(router, answer.data(), answer.size(), 0);
  const auto told = next(newcomer);
  ASSERT_TRUE(told);
  EXPECT_EQ(std::get<Refused>(told->envelope.payload).exit_code, exit_codes::kVersionMismatch);
  zmq_close(router), zmq_ctx_term(context);
}

// libzmq cuts the connection of a peer whose message is larger than the limit; the peer comes back and is served.
TEST_F(Channel, LargeMessagesNeverArrive) {
  ChannelOptions options = named("coordinator");
  options.max_message_bytes = 1 << 16;
  Server strict = Server::bind("127.0.0.1", 0, options).value();
  Client large = Client::connect(address_of(strict), named("large")).value();
  ASSERT_TRUE(large.send(Shutdown{std::string(1 << 17, 'x'), 0}));
  ASSERT_TRUE(large.send(Shutdown{std::string(1 << 15, 'y'), 0}));
  const Millis deadline = monotonic_ms() + kDeadlineMs;
  std::optional<Incoming> received;
  while (!received && monotonic_ms() < deadline) {
    received = strict.receive(50);
    if (!received) (void)large.send(Shutdown{std::string(1 << 15, 'y'), 0});
  }
  ASSERT_TRUE(received);
  EXPECT_EQ(std::get<Shutdown>(received->envelope.payload).reason[0], 'y');
}

TEST_F(Channel, APortInUseIsNamedWithTheFix) {
  const auto second = Server::bind("127.0.0.1", server.port(), named("second"));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kIo);
  for (const std::string& part : {std::to_string(server.port()), std::string("127.0.0.1"), std::string("in use"), std::string("operation.control.port")})
    EXPECT_NE(second.error().message.find(part), std::string::npos) << second.error().message;
  const auto nowhere = Server::bind("192.0.2.1", 0, named("nowhere"));
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, ErrorCode::kFixConfig);
  EXPECT_NE(nowhere.error().message.find("operation.control.bind"), std::string::npos);
  for (const char* text : {"no port", "127.0.0.1", "127.0.0.1:99999999", ""}) {
    const auto wrong = Client::connect(text, named("x"));
    ASSERT_FALSE(wrong) << text;
    EXPECT_EQ(wrong.error().code, ErrorCode::kFixConfig);
  }
}

TEST_F(Channel, ClientsComeBackToARestartedServerAsTheSamePeer) {
  ASSERT_TRUE(client.send(TrainerReady{}));
  const auto before = next(server);
  ASSERT_TRUE(before);
  const int port = server.port();
  {
    const Server gone = std::move(server);
  }
  auto again = Server::bind("127.0.0.1", port, named("coordinator"));
  for (const Millis deadline = monotonic_ms() + kDeadlineMs; !again && monotonic_ms() < deadline;) again = Server::bind("127.0.0.1", port, named("coordinator"));
  ASSERT_TRUE(again) << again.error().message;
  std::optional<Incoming> after;
  for (const Millis deadline = monotonic_ms() + kDeadlineMs; !after && monotonic_ms() < deadline; after = again->receive(50)) (void)client.send(TrainerReady{});
  ASSERT_TRUE(after);
  EXPECT_EQ(after->peer, before->peer);
  EXPECT_EQ(after->envelope.incarnation, before->envelope.incarnation);
  ASSERT_TRUE(again->send(after->peer, Reintroduce{}));
  EXPECT_TRUE(next(client));
  server = std::move(*again);
}

TEST_F(Channel, WakeEndsAWaitFromAnotherThread) {
  std::thread other([&] { server.wake(); });
  EXPECT_FALSE(server.receive(600000));  // the test's own time limit is far shorter
  other.join();
  client.wake();  // before the wait: kept
  EXPECT_FALSE(client.receive(600000));
}

TEST_F(Channel, AWatchedDescriptorEndsAWait) {
  const int descriptor = ::eventfd(1, EFD_CLOEXEC);
  client.watch(descriptor);
  EXPECT_FALSE(client.receive(600000));
  client.watch(-1);
  EXPECT_FALSE(client.receive(1));
  ::close(descriptor);
}

// A peer that sends only rubbish does not keep receive() from its caller.
TEST_F(Channel, AFloodOfDroppedMessagesDoesNotHoldReceive) {
  Raw raw(server);
  std::atomic<bool> done = false;
  std::thread flood([&] {
    while (!done) zmq_send(raw.socket, "rubbish", 7, ZMQ_DONTWAIT);
  });
  ASSERT_TRUE(until(server, [&] { return server.counters().malformed > 0; }));
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(server.receive(5));
  done = true;
  flood.join();
}

TEST(Incarnation, IsGivenOrRandomAndNeverEven) {
  Server server = Server::bind("127.0.0.1", 0, named("s")).value();
  const auto of = [&](ChannelOptions options) { return Client::connect(address_of(server), options).value().incarnation(); };
  EXPECT_NE(of(named("a")), of(named("a")));
  ChannelOptions given = named("a");
  given.incarnation = 41;
  EXPECT_EQ(of(given), 41u);
  ::setenv("TESSERA_INCARNATION", "node-a/0=12345", 1);
  EXPECT_EQ(of(named("node-a/0")), 12345u);
  EXPECT_NE(of(named("node-a")), 12345u);
  ::setenv("TESSERA_INCARNATION", "node-a/0=rubbish", 1);
  EXPECT_NE(of(named("node-a/0")), 0u);
  ::unsetenv("TESSERA_INCARNATION");
  for (int i = 0; i < 16; ++i) EXPECT_EQ(of(named("a")) & 1, 1u);
}

}  // namespace
}  // namespace tessera::proto
