// Whose request is worked on next, and how much may lie finished but unsent: bounded whatever the peers do. Pure bookkeeping
// of the data port's loop thread.
//
// A request is waiting -> started (a worker makes it) -> ready (its answer is being sent) -> gone. Peers take turns; a peer
// with more than `unsent_bytes` started or ready gets no new start, so a slow or dead trainer costs a bounded amount of
// memory and nobody else's time.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/ids.h"
#include "proto/messages.h"

namespace tessera::data {

struct QueueLimits {
  size_t requests_per_peer = 4096;               // outstanding; more are refused
  int64_t unsent_bytes_per_peer = int64_t{32} << 20;  // started or ready; one request more may begin below it
  int64_t unsent_bytes = int64_t{256} << 20;     // of all peers together
  Millis stalled_ms = 30'000;                    // a peer that takes nothing for so long is forgotten
};

using Request = std::variant<proto::TileRequest, proto::SampleRequest>;
inline uint64_t request_id(const Request& request) {
  return std::visit([](const auto& r) { return r.request_id; }, request);
}

struct Work {
  std::string peer;
  uint64_t ticket = 0;  // of this request; never used twice
  Request request;
  int64_t bytes = 0;    // of its answer
};

class RequestQueue {
 public:
  explicit RequestQueue(QueueLimits limits = {}) : limits_(limits) {}

  // Empty: accepted. Otherwise why not, as a sentence.
  std::string add(const std::string& peer, Request request, int64_t answer_bytes, Millis now);
  // The next request to work on, peers in turn; nullopt when there is none or the limits say wait.
  std::optional<Work> start();
  // Whether an answer is still wanted (neither cancelled nor its peer forgotten).
  bool wanted(const std::string& peer, uint64_t ticket) const;
  // Its answer went out whole, or was dropped.
  void finish(const std::string& peer, uint64_t ticket);
  // Part of an answer went out.
  void progress(const std::string& peer, Millis now);
  void cancel(const std::string& peer, uint64_t id);
  void forget(const std::string& peer) { peers_.erase(peer); }
  // Peers whose answers lie unsent for stalled_ms.
  std::vector<std::string> stalled(Millis now) const;

  int64_t unsent_bytes() const;
  size_t outstanding() const;  // waiting and started and ready
  bool has_waiting() const;

 private:
  struct Active {
    uint64_t id = 0;
    int64_t bytes = 0;
  };
  struct Peer {
    std::deque<Work> waiting;
    std::map<uint64_t, Active> active;  // by ticket
    int64_t active_bytes = 0;
    Millis last_progress = 0;
  };
  QueueLimits limits_;
  std::map<std::string, Peer> peers_;
  std::string last_peer_;  // that was started
  uint64_t next_ticket_ = 1;
};

}  // namespace tessera::data
