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
  uint64_t incarnation = 0;
};

bool fits(const Handshake& in, const Handshake& mine) { return in.magic == kMagic && in.run == mine.run && in.term == mine.term && in.number == mine.number; }

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

std::string list_ranks(const std::vector<size_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) text += (i ? ", " : "") + std::to_string(ranks[i]);
  return text;
}

std::string list_missing(const std::vector<int>& fd, Rank self) {
  std::vector<size_t> missing;
  for (size_t r = 0; r < fd.size(); ++r)
    if (Rank(r) != self && fd[r] < 0) missing.push_back(r);
  return list_ranks(missing);
}

// Dials a lower rank until it answers for this generation. -1 on abort or deadline.
int dial_until(const MeshPeer& peer, Rank rank, const Handshake& mine, const AbortSignal& abort, Millis end) {
  while (!abort.raised() && monotonic_ms() < end) {
    const int fd = dial(peer.address, abort, end);
    Handshake out = mine, in{};
    if (fd >= 0 && move_all(fd, reinterpret_cast<char*>(&out), sizeof out, true, abort, end) &&
        move_all(fd, reinterpret_cast<char*>(&in), sizeof in, false, abort, end) && fits(in, mine) && in.rank == rank && in.incarnation == peer.incarnation)
      return fd;
    if (fd >= 0) ::close(fd);
    pollfd wait{abort.descriptor(), POLLIN, 0};
    poll(&wait, 1, 10);
  }
  return -1;
}

// Takes one connection; -1 when it is of another generation or process.
int accept_one(const MeshListener& listener, const Handshake& mine, const std::vector<MeshPeer>& peers, const std::vector<int>& have, const AbortSignal& abort, Millis end, int64_t& rank) {
  const int fd = ::accept4(listener.descriptor(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return -1;
  set_options(fd);
  Handshake out = mine, in{};
  const bool ok = move_all(fd, reinterpret_cast<char*>(&in), sizeof in, false, abort, end) && fits(in, mine) && in.rank > mine.rank && in.rank < int64_t(peers.size()) &&
                  in.incarnation == peers[size_t(in.rank)].incarnation && have[size_t(in.rank)] < 0 && move_all(fd, reinterpret_cast<char*>(&out), sizeof out, true, abort, end);
  if (!ok) ::close(fd);
  rank = in.rank;
  return ok ? fd : -1;
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
  const Handshake mine{kMagic, hash64_bytes(run_id), generation.term, generation.number, rank, peers[size_t(rank)].incarnation};
  for (Rank r = 0; r < rank; ++r) {  // lower ranks listen; they may not have entered this generation yet
    mesh->fd_[size_t(r)] = dial_until(peers[size_t(r)], r, mine, abort, end);
    if (abort.raised()) return rebuild("aborted while connecting");
    if (mesh->fd_[size_t(r)] < 0) return rebuild("rank " + std::to_string(r) + " at " + peers[size_t(r)].address + " did not answer within " + std::to_string(timeout_ms) + " ms");
  }
  for (int missing = int(peers.size()) - 1 - rank; missing > 0;) {
    if (abort.raised()) return rebuild("aborted while connecting");
    const Millis left = end - monotonic_ms();
    if (left <= 0) return rebuild(list_missing(mesh->fd_, rank) + " did not connect within " + std::to_string(timeout_ms) + " ms");
    pollfd polls[2] = {{listener.descriptor(), POLLIN, 0}, {abort.descriptor(), POLLIN, 0}};
    poll(polls, 2, int(left));
    int64_t from = -1;
    const int fd = accept_one(listener, mine, peers, mesh->fd_, abort, std::min(end, monotonic_ms() + 1000), from);
    if (fd < 0) continue;
    mesh->fd_[size_t(from)] = fd;
    --missing;
  }
  return mesh;
}

Mesh::~Mesh() {
  for (int fd : fd_)
    if (fd >= 0) ::close(fd);
}

void Mesh::hang_up() {
  for (const int fd : fd_)
    if (fd >= 0) ::shutdown(fd, SHUT_RDWR);
}

Status Mesh::transfer(std::vector<std::vector<Piece>> out, std::vector<std::vector<Piece>> in, Millis timeout_ms) {
  if (failed_) return tl::unexpected(*failed_);
  Status done = move_pieces(out, in, timeout_ms);
  if (!done) failed_ = done.error();
  return done;
}

tl::unexpected<Error> Mesh::lost(Rank r, const std::string& cause) {
  suspect_ = r;
  return rebuild("rank " + std::to_string(r) + " is gone (" + cause + ")");
}

Status Mesh::move_pieces(std::vector<std::vector<Piece>>& out, std::vector<std::vector<Piece>>& in, Millis timeout_ms) {
  const size_t world = size_t(world_size_);
  std::vector<size_t> sent(world), received(world), who;
  std::vector<pollfd> polls;
  for (Millis last_move = monotonic_ms();;) {
    polls.assign(1, {abort_.descriptor(), POLLIN, 0});
    who.clear();
    for (size_t r = 0; r < world; ++r) {
      if (Rank(r) == rank_) continue;
      while (sent[r] < out[r].size() && out[r][sent[r]].size == 0) ++sent[r];
      while (received[r] < in[r].size() && in[r][received[r]].size == 0) ++received[r];
      const short events = short((sent[r] < out[r].size() ? POLLOUT : 0) | (received[r] < in[r].size() ? POLLIN : 0));
      if (events) polls.push_back({fd_[r], events, 0}), who.push_back(r);
    }
    if (abort_.raised()) return rebuild("aborted");
    if (who.empty()) return {};
    poll(polls.data(), nfds_t(polls.size()), 100);
    bool moved = false;
    for (size_t i = 0; i < who.size(); ++i) {
      const size_t r = who[i];
      TESSERA_ASSIGN(const bool some, move_some(Rank(r), out[r], sent[r], in[r], received[r], polls[i + 1].revents));
      moved = moved || some;
    }
    if (moved) last_move = monotonic_ms();
    if (timeout_ms > 0 && monotonic_ms() - last_move > timeout_ms) {
      suspect_ = who.size() == 1 ? Rank(who[0]) : -1;
      return rebuild("nothing from " + list_ranks(who) + " for " + std::to_string(timeout_ms) + " ms");
    }
  }
}

Result<bool> Mesh::move_some(Rank r, std::vector<Piece>& out, size_t& sent, std::vector<Piece>& in, size_t& received, short events) {
  bool moved = false;
  if (events & POLLOUT) {
    Piece& piece = out[sent];
    const ssize_t n = ::send(fd_[size_t(r)], piece.data, piece.size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return lost(r, std::strerror(errno));
    if (n > 0) piece.data = static_cast<char*>(piece.data) + n, piece.size -= size_t(n), bytes_sent_ += n, moved = true;
  }
  if (events & (POLLIN | POLLHUP | POLLERR) && received < in.size()) {
    Piece& piece = in[received];
    const ssize_t n = ::recv(fd_[size_t(r)], piece.data, piece.size, MSG_DONTWAIT);
    if (n == 0) return lost(r, "connection closed");
    if (n < 0 && errno != EAGAIN && errno != EINTR) return lost(r, std::strerror(errno));
    if (n > 0) piece.data = static_cast<char*>(piece.data) + n, piece.size -= size_t(n), moved = true;
  }
  return moved;
}

}  // namespace tessera::collective
