#include "worker/collective/mesh.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/hash.h"

namespace tessera::collective {
namespace {

constexpr uint64_t kMagic = 0x7465737365726131ull;

// First bytes on every connection, both ways.
struct Handshake {
  uint64_t magic = kMagic;
  uint64_t run = 0;
  uint64_t term = 0, number = 0;
  int64_t rank = 0;
};

tl::unexpected<Error> rebuild(const std::string& text) { return fail(ErrorCode::kRebuildWorld, "[mesh] " + text); }

void set_options(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
}

// Whole buffer within the deadline; abort ends it. Used for handshakes only.
bool move_all(int fd, char* data, size_t size, bool sending, const AbortSignal& abort, Millis end) {
  while (size > 0) {
    if (abort.raised()) return false;
    const ssize_t moved = sending ? ::send(fd, data, size, MSG_NOSIGNAL) : ::recv(fd, data, size, 0);
    if (moved > 0) {
      data += moved, size -= size_t(moved);
      continue;
    }
    if (moved == 0 || (errno != EAGAIN && errno != EINTR)) return false;
    const Millis left = end - monotonic_ms();
    if (left <= 0) return false;
    pollfd polls[2] = {{fd, short(sending ? POLLOUT : POLLIN), 0}, {abort.descriptor(), POLLIN, 0}};
    poll(polls, 2, int(left));
  }
  return true;
}

int dial(const std::string& address, const AbortSignal& abort, Millis end) {
  const size_t colon = address.rfind(':');
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (colon == std::string::npos || getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) return -1;
  int fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  bool connected = false;
  if (fd >= 0 && (::connect(fd, found->ai_addr, found->ai_addrlen) == 0 || errno == EINPROGRESS)) {
    while (!connected && !abort.raised() && monotonic_ms() < end) {
      pollfd polls[2] = {{fd, POLLOUT, 0}, {abort.descriptor(), POLLIN, 0}};
      if (poll(polls, 2, int(std::max<Millis>(1, end - monotonic_ms()))) > 0 && polls[0].revents) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        connected = error == 0;
        break;
      }
    }
  }
  freeaddrinfo(found);
  if (!connected && fd >= 0) ::close(fd), fd = -1;
  if (fd >= 0) set_options(fd);
  return fd;
}

std::string list_missing(const std::vector<int>& fd, Rank self) {
  std::string text;
  for (size_t r = 0; r < fd.size(); ++r)
    if (Rank(r) != self && fd[r] < 0) text += (text.empty() ? "" : ", ") + std::to_string(r);
  return text;
}

}  // namespace

AbortSignal::AbortSignal() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
AbortSignal::~AbortSignal() { ::close(fd_); }
void AbortSignal::raise() {
  raised_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = ::write(fd_, &one, sizeof one);
}
void AbortSignal::clear() {
  uint64_t count;
  [[maybe_unused]] const ssize_t got = ::read(fd_, &count, sizeof count);
  raised_ = false;
}

Result<std::unique_ptr<MeshListener>> MeshListener::open(const std::string& address) {
  auto out = std::make_unique<MeshListener>();
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  if (getaddrinfo(address.c_str(), "0", &hints, &found) != 0)
    return fail(ErrorCode::kFixConfig, "[mesh] '" + address + "' is no address of this host; set --advertise to one");
  out->fd_ = ::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const bool ok = out->fd_ >= 0 && ::bind(out->fd_, found->ai_addr, found->ai_addrlen) == 0 && ::listen(out->fd_, 256) == 0;
  const std::string cause = std::strerror(errno);
  freeaddrinfo(found);
  if (!ok) return fail(ErrorCode::kIo, "[mesh] cannot listen on " + address + ": " + cause + "; set --advertise to an address of this host");
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  getsockname(out->fd_, reinterpret_cast<sockaddr*>(&bound), &size);
  out->port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
  return out;
}
MeshListener::~MeshListener() {
  if (fd_ >= 0) ::close(fd_);
}

Result<std::unique_ptr<Mesh>> Mesh::connect(MeshListener& listener, const std::string& run_id, Generation generation, Rank rank,
                                            const std::vector<MeshPeer>& peers, AbortSignal& abort, Millis timeout_ms) {
  std::unique_ptr<Mesh> mesh(new Mesh(rank, int(peers.size()), abort));
  const Millis end = monotonic_ms() + timeout_ms;
  const Handshake mine{kMagic, hash64_bytes(run_id), generation.term, generation.number, rank};
  const auto fits = [&](const Handshake& h) { return h.magic == kMagic && h.run == mine.run && h.term == mine.term && h.number == mine.number; };
  for (Rank r = 0; r < rank; ++r) {  // lower ranks listen; they may not have entered this generation yet: dial again
    while (mesh->fd_[size_t(r)] < 0) {
      if (abort.raised()) return rebuild("aborted while connecting");
      if (monotonic_ms() >= end) {
        mesh->suspect_ = r;
        return rebuild("rank " + std::to_string(r) + " at " + peers[size_t(r)].address + " did not answer within " + std::to_string(timeout_ms) + " ms");
      }
      const int fd = dial(peers[size_t(r)].address, abort, end);
      Handshake out = mine, in{};
      if (fd >= 0 && move_all(fd, reinterpret_cast<char*>(&out), sizeof out, true, abort, end) &&
          move_all(fd, reinterpret_cast<char*>(&in), sizeof in, false, abort, end) && fits(in) && in.rank == r) {
        mesh->fd_[size_t(r)] = fd;
        break;
      }
      if (fd >= 0) ::close(fd);
      pollfd wait{abort.descriptor(), POLLIN, 0};
      poll(&wait, 1, 10);
    }
  }
  for (int missing = int(peers.size()) - 1 - rank; missing > 0;) {
    if (abort.raised()) return rebuild("aborted while connecting");
    const Millis left = end - monotonic_ms();
    if (left <= 0) return rebuild("rank " + list_missing(mesh->fd_, rank) + " did not connect within " + std::to_string(timeout_ms) + " ms");
    pollfd polls[2] = {{listener.descriptor(), POLLIN, 0}, {abort.descriptor(), POLLIN, 0}};
    poll(polls, 2, int(left));
    const int fd = ::accept4(listener.descriptor(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) continue;
    set_options(fd);
    Handshake out = mine, in{};
    const Millis handshake_end = std::min(end, monotonic_ms() + 1000);
    const bool ok = move_all(fd, reinterpret_cast<char*>(&in), sizeof in, false, abort, handshake_end) && fits(in) && in.rank > rank &&
                    in.rank < int64_t(peers.size()) && mesh->fd_[size_t(in.rank)] < 0 &&
                    move_all(fd, reinterpret_cast<char*>(&out), sizeof out, true, abort, handshake_end);
    if (!ok) {
      ::close(fd);  // of an older generation, or no peer of ours
      continue;
    }
    mesh->fd_[size_t(in.rank)] = fd;
    --missing;
  }
  return mesh;
}

Mesh::~Mesh() {
  for (int fd : fd_)
    if (fd >= 0) ::close(fd);
}

Status Mesh::transfer(std::vector<std::vector<Piece>> out, std::vector<std::vector<Piece>> in, Millis timeout_ms) {
  const size_t world = size_t(world_size_);
  std::vector<size_t> sent(world), received(world);
  Millis last_move = monotonic_ms();
  std::vector<pollfd> polls;
  std::vector<size_t> who;
  for (;;) {
    polls.assign(1, {abort_.descriptor(), POLLIN, 0});
    who.assign(1, world);
    for (size_t r = 0; r < world; ++r) {
      if (Rank(r) == rank_) continue;
      while (sent[r] < out[r].size() && out[r][sent[r]].size == 0) ++sent[r];
      while (received[r] < in[r].size() && in[r][received[r]].size == 0) ++received[r];
      const short events = short((sent[r] < out[r].size() ? POLLOUT : 0) | (received[r] < in[r].size() ? POLLIN : 0));
      if (events) polls.push_back({fd_[r], events, 0}), who.push_back(r);
    }
    if (abort_.raised()) return rebuild("aborted");
    if (polls.size() == 1) return {};
    poll(polls.data(), nfds_t(polls.size()), 100);
    bool moved = false;
    for (size_t i = 1; i < polls.size(); ++i) {
      const size_t r = who[i];
      if (polls[i].revents & POLLOUT) {
        Piece& piece = out[r][sent[r]];
        const ssize_t n = ::send(fd_[r], piece.data, piece.size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) piece.data = static_cast<char*>(piece.data) + n, piece.size -= size_t(n), bytes_sent_ += n, moved = true;
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
          suspect_ = Rank(r);
          return rebuild("rank " + std::to_string(r) + " is gone (" + std::strerror(errno) + ")");
        }
      }
      if (polls[i].revents & (POLLIN | POLLHUP | POLLERR)) {
        if (received[r] >= in[r].size()) continue;
        Piece& piece = in[r][received[r]];
        const ssize_t n = ::recv(fd_[r], piece.data, piece.size, MSG_DONTWAIT);
        if (n > 0) piece.data = static_cast<char*>(piece.data) + n, piece.size -= size_t(n), moved = true;
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
          suspect_ = Rank(r);
          return rebuild("rank " + std::to_string(r) + " is gone (" + (n == 0 ? "connection closed" : std::strerror(errno)) + ")");
        }
      }
    }
    if (moved) last_move = monotonic_ms();
    if (timeout_ms > 0 && monotonic_ms() - last_move > timeout_ms) {
      suspect_ = Rank(who.back());
      return rebuild("nothing from rank " + std::to_string(who.back()) + " for " + std::to_string(timeout_ms) + " ms");
    }
  }
}

}  // namespace tessera::collective
