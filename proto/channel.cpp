#include "proto/channel.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/version.h"
#include "proto/codec.h"

namespace tessera::proto {
namespace {

constexpr int kHandshakeMs = 3000, kHeartbeatMs = 1000, kHeartbeatTimeoutMs = 5000, kReconnectMs = 50, kReconnectMaxMs = 1000;

// Dropped messages that one receive() looks at.
constexpr int kDropsPerReceive = 1000;

// Odd, since a routing identity (the incarnation's bytes) must not begin with 0.
uint64_t choose_incarnation(const ChannelOptions& options) {
  uint64_t given = options.incarnation;
  const char* named = std::getenv("TESSERA_INCARNATION");
  const std::string prefix = options.sender + "=";
  if (given == 0 && named != nullptr && std::string(named).starts_with(prefix)) given = std::strtoull(named + prefix.size(), nullptr, 10);
  if (given != 0) return given | 1;
  std::random_device device;
  return (uint64_t{device()} << 32 | device()) | 1;
}

struct Message {
  zmq_msg_t raw;
  Message() { zmq_msg_init(&raw); }
  ~Message() { zmq_msg_close(&raw); }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;
  std::string text() { return {static_cast<const char*>(zmq_msg_data(&raw)), zmq_msg_size(&raw)}; }
};

void set_int(void* socket, int option, int value) { zmq_setsockopt(socket, option, &value, sizeof value); }

void release_owner(void*, void* hint) { delete static_cast<std::shared_ptr<const void>*>(hint); }

// What both ends share: one socket, its limits, an eventfd that ends a wait.
struct Core {
  ChannelOptions options;
  void* context = nullptr;
  void* socket = nullptr;
  int wake_fd = -1;
  int watched_fd = -1;
  bool woken = false;  // wake() was seen; the receive() that sees it returns without waiting again
  uint64_t incarnation;
  uint64_t sequence = 0;
  ChannelCounters counters;

  Core(ChannelOptions o, int type) : options(std::move(o)), incarnation(choose_incarnation(options)) {
    context = zmq_ctx_new();
    socket = zmq_socket(context, type);
    wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &options.max_message_bytes, sizeof options.max_message_bytes);
    set_int(socket, ZMQ_HANDSHAKE_IVL, kHandshakeMs);
    set_int(socket, ZMQ_SNDHWM, options.high_water_mark);
    set_int(socket, ZMQ_RCVHWM, options.high_water_mark);
    set_int(socket, ZMQ_LINGER, 500);
    set_int(socket, ZMQ_HEARTBEAT_IVL, kHeartbeatMs);
    set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, kHeartbeatTimeoutMs);
    set_int(socket, ZMQ_RECONNECT_IVL, kReconnectMs);
    set_int(socket, ZMQ_RECONNECT_IVL_MAX, kReconnectMaxMs);
    if (options.socket_buffer_bytes > 0) set_int(socket, ZMQ_SNDBUF, options.socket_buffer_bytes), set_int(socket, ZMQ_RCVBUF, options.socket_buffer_bytes);
  }
  ~Core() {
    if (socket) zmq_close(socket);
    if (context) zmq_ctx_term(context);
    if (wake_fd >= 0) ::close(wake_fd);
  }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  void wake() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t put = ::write(wake_fd, &one, sizeof one);
  }

  // True when the socket has a message; false on the deadline, wake() or the watched descriptor.
  bool wait(int timeout_ms) {
    zmq_pollitem_t items[3] = {{socket, 0, ZMQ_POLLIN, 0}, {nullptr, wake_fd, ZMQ_POLLIN, 0}, {nullptr, watched_fd, ZMQ_POLLIN, 0}};
    const int ready = zmq_poll(items, watched_fd >= 0 ? 3 : 2, timeout_ms);
    if (ready <= 0) return false;
    if (items[1].revents & ZMQ_POLLIN) {
      uint64_t count;
      woken = ::read(wake_fd, &count, sizeof count) == sizeof count || woken;
    }
    return (items[0].revents & ZMQ_POLLIN) != 0;
  }

  // One whole multipart message, parts beyond the third thrown away. False when there is none.
  bool receive_parts(std::vector<std::string>& parts) {
    parts.clear();
    for (;;) {
      Message part;
      if (zmq_msg_recv(&part.raw, socket, ZMQ_DONTWAIT) < 0) return false;
      const bool more = zmq_msg_more(&part.raw) != 0;
      if (parts.size() < 4) parts.push_back(part.text());
      if (!more) return true;
    }
  }

  Status send_envelope(const Payload& payload, RawPart raw) {
    Envelope envelope{kProtocolVersion, options.cluster_id, options.run_id, options.sender, incarnation, ++sequence, payload};
    const std::string bytes = encode(envelope);
    const bool has_raw = raw.data != nullptr;
    if (zmq_send(socket, bytes.data(), bytes.size(), ZMQ_DONTWAIT | (has_raw ? ZMQ_SNDMORE : 0)) < 0) return send_error();
    if (has_raw) {
      zmq_msg_t message;
      auto* owner = new std::shared_ptr<const void>(std::move(raw.owner));
      zmq_msg_init_data(&message, const_cast<void*>(raw.data), raw.size, release_owner, owner);
      if (zmq_msg_send(&message, socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&message);
        return send_error();
      }
    }
    ++counters.sent;
    return {};
  }
  Status send_error() {
    ++counters.undeliverable;
    if (errno == EHOSTUNREACH) return fail(ErrorCode::kUnavailable, "[proto] the peer is gone");
    return fail(ErrorCode::kRetry, std::string("[proto] the peer's queue is full: ") + zmq_strerror(errno));
  }

  // Turns parts (without routing identity) into a message; counts what it drops.
  std::optional<Incoming> accept(std::string peer, std::vector<std::string>& parts, size_t first, bool* wrong_version) {
    if (parts.size() <= first || parts.size() > first + 2) return ++counters.malformed, std::nullopt;
    auto envelope = decode(parts[first]);
    if (!envelope) return ++counters.malformed, std::nullopt;
    if (envelope->protocol != kProtocolVersion) return ++counters.foreign, *wrong_version = true, std::nullopt;
    const bool other_run = !envelope->run_id.empty() && !options.run_id.empty() && envelope->run_id != options.run_id;
    if (envelope->cluster_id != options.cluster_id || other_run) return ++counters.foreign, std::nullopt;
    ++counters.received;
    return Incoming{std::move(peer), std::move(*envelope), parts.size() > first + 1 ? std::move(parts[first + 1]) : std::string()};
  }
};

// libzmq takes any number for a port and fails later, unseen.
bool has_port(const std::string& endpoint) {
  const std::string port = endpoint.substr(endpoint.rfind(':') + 1);
  const bool digits = !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  return digits && std::stoi(port) >= 1 && std::stoi(port) <= 65535;
}
std::string endpoint(const std::string& address, int port) { return "tcp://" + address + ":" + std::to_string(port); }

}  // namespace

struct Server::Impl : Core {
  int bound_port = 0;
  explicit Impl(ChannelOptions o) : Core(std::move(o), ZMQ_ROUTER) {
    set_int(socket, ZMQ_ROUTER_MANDATORY, 1);
    set_int(socket, ZMQ_ROUTER_HANDOVER, 1);
  }
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;
Server::Server(Server&&) noexcept = default;
Server& Server::operator=(Server&&) noexcept = default;

Result<Server> Server::bind(const std::string& address, int port, ChannelOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  const std::string where = port == 0 ? "tcp://" + address + ":*" : endpoint(address, port);
  if (zmq_bind(impl->socket, where.c_str()) != 0) {
    const int error = errno;
    if (error == EADDRINUSE)
      return fail(ErrorCode::kIo, "[control] port " + std::to_string(port) + " of " + address + " is in use; set operation.control.port to another, or to 0 for a free one");
    return fail(ErrorCode::kFixConfig, "[control] cannot listen on " + address + ":" + std::to_string(port) + ": " + zmq_strerror(error) + "; set operation.control.bind to an address of this host");
  }
  char last[256] = {};
  size_t size = sizeof last;
  zmq_getsockopt(impl->socket, ZMQ_LAST_ENDPOINT, last, &size);
  const std::string text = last;
  impl->bound_port = std::stoi(text.substr(text.rfind(':') + 1));
  return Server(std::move(impl));
}

int Server::port() const { return impl_->bound_port; }
void Server::wake() { impl_->wake(); }
void Server::watch(int descriptor) { impl_->watched_fd = descriptor; }
void Server::set_run_id(const std::string& run_id) { impl_->options.run_id = run_id; }
const ChannelCounters& Server::counters() const { return impl_->counters; }

std::optional<Incoming> Server::receive(int timeout_ms) {
  const Millis end = monotonic_ms() + timeout_ms;
  std::vector<std::string> parts;
  for (int dropped = 0; dropped < kDropsPerReceive;) {
    for (; dropped < kDropsPerReceive && impl_->receive_parts(parts); ++dropped) {
      if (parts.empty()) continue;
      bool wrong_version = false;
      auto incoming = impl_->accept(parts[0], parts, 1, &wrong_version);
      if (incoming) return incoming;
      if (wrong_version)
        (void)send(parts[0], Refused{"the other side speaks another protocol version; this is Tessera " + std::string(kVersion) + ", protocol " + std::to_string(kProtocolVersion), exit_codes::kVersionMismatch});
    }
    const Millis left = end - monotonic_ms();
    if (std::exchange(impl_->woken, false) || left < 0 || !impl_->wait(int(left))) return impl_->woken = false, std::nullopt;
  }
  return std::nullopt;
}

Status Server::send(const std::string& peer, const Payload& payload, RawPart raw) {
  if (zmq_send(impl_->socket, peer.data(), peer.size(), ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) return impl_->send_error();
  return impl_->send_envelope(payload, std::move(raw));
}

struct Client::Impl : Core {
  explicit Impl(ChannelOptions o) : Core(std::move(o), ZMQ_DEALER) {}
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;

Result<Client> Client::connect(const std::string& address, ChannelOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  const std::string where = address.starts_with("tcp://") ? address : "tcp://" + address;
  // The routing identity is our incarnation, so that a peer is the same peer after a reconnect.
  zmq_setsockopt(impl->socket, ZMQ_ROUTING_ID, &impl->incarnation, sizeof impl->incarnation);
  errno = EINVAL;
  if (!has_port(where) || zmq_connect(impl->socket, where.c_str()) != 0)
    return fail(ErrorCode::kFixConfig, "[proto] '" + address + "' is no address: HOST:PORT expected (" + zmq_strerror(errno) + ")");
  return Client(std::move(impl));
}

void Client::wake() { impl_->wake(); }
void Client::watch(int descriptor) { impl_->watched_fd = descriptor; }
void Client::set_run_id(const std::string& run_id) { impl_->options.run_id = run_id; }
uint64_t Client::incarnation() const { return impl_->incarnation; }
const ChannelCounters& Client::counters() const { return impl_->counters; }

std::optional<Incoming> Client::receive(int timeout_ms) {
  const Millis end = monotonic_ms() + timeout_ms;
  std::vector<std::string> parts;
  for (int dropped = 0; dropped < kDropsPerReceive;) {
    for (; dropped < kDropsPerReceive && impl_->receive_parts(parts); ++dropped) {
      bool wrong_version = false;
      if (auto incoming = impl_->accept("", parts, 0, &wrong_version)) return incoming;
      if (wrong_version)
        return Incoming{"", Envelope{kProtocolVersion, impl_->options.cluster_id, "", "coordinator", 0, 0,
                                     Refused{"the other side speaks another protocol version; this is Tessera " + std::string(kVersion), exit_codes::kVersionMismatch}}, ""};
    }
    const Millis left = end - monotonic_ms();
    if (std::exchange(impl_->woken, false) || left < 0 || !impl_->wait(int(left))) return impl_->woken = false, std::nullopt;
  }
  return std::nullopt;
}

Status Client::send(const Payload& payload, RawPart raw) { return impl_->send_envelope(payload, std::move(raw)); }

}  // namespace tessera::proto
