// ZeroMQ sockets behind two small classes: a Server (ROUTER) and a Client (DEALER). One thread owns a channel; nothing
// here locks. Every socket has limits on message size, handshake time, queue length and linger.
//
// A message is [encoded Envelope] or [encoded Envelope, raw bytes]; raw carries pixels without a copy through Protobuf.
// Malformed, oversized or foreign messages (other protocol version or cluster) are dropped and counted; a hello of
// another protocol version is answered by Refused with exit code 84.
//
// The seam for CURVE: Security is passed to both constructors; only kNone exists so far.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "proto/messages.h"

namespace tessera::proto {

struct ChannelOptions {
  std::string cluster_id = "tessera";
  std::string run_id;
  std::string sender;             // own name in envelopes
  int64_t max_message_bytes = int64_t{4} << 20;
  int high_water_mark = 10000;    // messages queued per peer; overflow: send() returns kRetry
  int socket_buffer_bytes = 0;    // 0: the system's
  // Of this process in envelopes. 0: what TESSERA_INCARNATION gives to this sender ("<sender>=<number>", set by the node
  // daemon so that it and the coordinator mean the same process), else random.
  uint64_t incarnation = 0;
};

struct ChannelCounters {
  uint64_t received = 0, sent = 0, malformed = 0, foreign = 0, undeliverable = 0;
};

// Raw bytes that stay alive until ZeroMQ has sent them.
struct RawPart {
  const void* data = nullptr;
  size_t size = 0;
  std::shared_ptr<const void> owner;  // released on an I/O thread when sent
};

struct Incoming {
  std::string peer;  // routing identity (Server only)
  Envelope envelope;
  std::string raw;   // empty when there was none
};

class Server {
 public:
  ~Server();
  Server(Server&&) noexcept;
  Server& operator=(Server&&) noexcept;
  // bind: "127.0.0.1", "0.0.0.0"; port 0 takes a free one. Error: kIo "port 7000 of 127.0.0.1 is in use ..." with the fix.
  static Result<Server> bind(const std::string& address, int port, ChannelOptions options);
  int port() const;
  // Waits until a message, the deadline (timeout_ms >= 0), or wake(). nullopt: none. Never throws. A flood of messages
  // that are dropped does not hold it: it returns nullopt after a thousand of them.
  std::optional<Incoming> receive(int timeout_ms);
  // Error: kUnavailable (peer unknown or gone), kRetry (its queue is full: drop or try later).
  Status send(const std::string& peer, const Payload& payload, RawPart raw = {});
  void set_run_id(const std::string& run_id);
  // From any thread or a signal handler: makes a waiting receive() return nullopt at once.
  void wake();
  // One more descriptor that ends the wait when readable (an eventfd of another thread's mailbox); -1: none.
  void watch(int descriptor);
  const ChannelCounters& counters() const;

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Client {
 public:
  ~Client();
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;
  // address "host:port" or "tcp://host:port"; connects in the background and again after every break.
  static Result<Client> connect(const std::string& address, ChannelOptions options);
  std::optional<Incoming> receive(int timeout_ms);
  Status send(const Payload& payload, RawPart raw = {});
  void set_run_id(const std::string& run_id);
  void wake();
  void watch(int descriptor);
  uint64_t incarnation() const;
  const ChannelCounters& counters() const;

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::proto
