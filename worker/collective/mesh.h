// The trainers' own TCP mesh: one connection between each two ranks of a generation. Votes, the host collective and
// state transfers run over it. A listener lives as long as the trainer; a Mesh as long as a generation. After a failed
// transfer the streams are out of step, so every later call answers with the same error at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/ids.h"
#include "common/result.h"

namespace tessera::collective {

// An eventfd that, once raised, makes every wait of the meshes that watch it return kRebuildWorld at once.
class AbortSignal {
 public:
  AbortSignal();
  ~AbortSignal();
  AbortSignal(const AbortSignal&) = delete;
  AbortSignal& operator=(const AbortSignal&) = delete;
  void raise();  // any thread
  void clear();
  bool raised() const { return raised_; }
  int descriptor() const { return fd_; }

 private:
  int fd_ = -1;
  std::atomic<bool> raised_{false};
};

// Listening socket of the trainer.
class MeshListener {
 public:
  // address: local address to bind; port 0 takes a free one. Error: kIo.
  static Result<std::unique_ptr<MeshListener>> open(const std::string& address);
  ~MeshListener();
  int port() const { return port_; }
  int descriptor() const { return fd_; }

 private:
  int fd_ = -1;
  int port_ = 0;
};

struct MeshPeer {
  Rank rank = 0;
  std::string address;       // host:port
  uint64_t incarnation = 0;  // of the peer's process: a restarted one is another peer
};

struct Piece {
  void* data = nullptr;
  size_t size = 0;
};

class Mesh {
 public:
  // Connects to every lower rank and accepts every higher one; a handshake carries run, generation, rank and
  // incarnation, and connections of another generation or process are closed. peers is by rank and holds this rank too.
  // Errors: kRebuildWorld (deadline passed, peer unreachable, aborted),
  // naming the ranks that are missing.
  static Result<std::unique_ptr<Mesh>> connect(MeshListener& listener, const std::string& run_id, Generation generation, Rank rank,
                                               const std::vector<MeshPeer>& peers, AbortSignal& abort, Millis timeout_ms);
  ~Mesh();
  Rank rank() const { return rank_; }
  int world_size() const { return world_size_; }

  // Sends out[r] to rank r and receives in[r] from it, all at once, in order. Errors: kRebuildWorld, naming the peer that
  // closed, or the ranks still awaited when nothing moved for timeout_ms (0: no limit).
  Status transfer(std::vector<std::vector<Piece>> out, std::vector<std::vector<Piece>> in, Millis timeout_ms);
  // As transfer, one equal-sized record from each rank to all: records[rank()] is ours, the others are written.
  template <typename Record>
  Status all_to_all(std::vector<Record>& records, Millis timeout_ms) {
    std::vector<std::vector<Piece>> out(records.size()), in(records.size());
    for (size_t r = 0; r < records.size(); ++r)
      if (Rank(r) != rank_) out[r].push_back({&records[size_t(rank_)], sizeof(Record)}), in[r].push_back({&records[r], sizeof(Record)});
    return transfer(std::move(out), std::move(in), timeout_ms);
  }
  // Ends the connections: a transfer in flight and every later one fails at once. Any thread.
  void hang_up();
  // Rank named by the last error, -1 when none.
  Rank suspect() const { return suspect_; }
  int64_t bytes_sent() const { return bytes_sent_; }

 private:
  Mesh(Rank rank, int world_size, AbortSignal& abort) : rank_(rank), world_size_(world_size), abort_(abort), fd_(size_t(world_size), -1) {}
  Rank rank_;
  int world_size_;
  AbortSignal& abort_;
  std::vector<int> fd_;
  Status move_pieces(std::vector<std::vector<Piece>>& out, std::vector<std::vector<Piece>>& in, Millis timeout_ms);
  Result<bool> move_some(Rank r, std::vector<Piece>& out, size_t& sent, std::vector<Piece>& in, size_t& received, short events);
  tl::unexpected<Error> lost(Rank r, const std::string& cause);
  Rank suspect_ = -1;
  int64_t bytes_sent_ = 0;
  std::optional<Error> failed_;
};

}  // namespace tessera::collective
