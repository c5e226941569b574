#include "data_loader/server/request_queue.h"

#include <algorithm>

namespace tessera::data {

std::string RequestQueue::add(const std::string& peer, Request request, int64_t answer_bytes, Millis now) {
  Peer& entry = peers_[peer];
  if (entry.waiting.size() + entry.active.size() >= limits_.requests_per_peer)
    return "[data_loader] more than " + std::to_string(limits_.requests_per_peer) + " requests are outstanding; ask again when some are answered";
  if (entry.active.empty()) entry.last_progress = now;
  entry.waiting.push_back({peer, next_ticket_++, std::move(request), answer_bytes});
  return "";
}

std::optional<Work> RequestQueue::start() {
  const int64_t all = unsent_bytes();
  if (peers_.empty() || all >= limits_.unsent_bytes) return std::nullopt;
  auto it = peers_.upper_bound(last_peer_);
  for (size_t i = 0; i < peers_.size(); ++i, ++it) {
    if (it == peers_.end()) it = peers_.begin();
    Peer& entry = it->second;
    if (entry.waiting.empty() || entry.active_bytes >= limits_.unsent_bytes_per_peer) continue;
    Work work = std::move(entry.waiting.front());
    entry.waiting.pop_front();
    entry.active[work.ticket] = {request_id(work.request), work.bytes};
    entry.active_bytes += work.bytes;
    last_peer_ = it->first;
    return work;
  }
  return std::nullopt;
}

bool RequestQueue::wanted(const std::string& peer, uint64_t ticket) const {
  const auto it = peers_.find(peer);
  return it != peers_.end() && it->second.active.contains(ticket);
}

void RequestQueue::finish(const std::string& peer, uint64_t ticket) {
  const auto it = peers_.find(peer);
  if (it == peers_.end()) return;
  const auto active = it->second.active.find(ticket);
  if (active == it->second.active.end()) return;
  it->second.active_bytes -= active->second.bytes;
  it->second.active.erase(active);
  if (it->second.active.empty() && it->second.waiting.empty()) peers_.erase(it);
}

void RequestQueue::progress(const std::string& peer, Millis now) {
  if (const auto it = peers_.find(peer); it != peers_.end()) it->second.last_progress = now;
}

void RequestQueue::cancel(const std::string& peer, uint64_t id) {
  const auto it = peers_.find(peer);
  if (it == peers_.end()) return;
  std::erase_if(it->second.waiting, [&](const Work& work) { return request_id(work.request) == id; });
  for (const auto& [ticket, active] : it->second.active) {
    if (active.id != id) continue;
    return finish(peer, ticket);
  }
  if (it->second.active.empty() && it->second.waiting.empty()) peers_.erase(it);
}

std::vector<std::string> RequestQueue::stalled(Millis now) const {
  std::vector<std::string> out;
  for (const auto& [peer, entry] : peers_)
    if (!entry.active.empty() && now - entry.last_progress > limits_.stalled_ms) out.push_back(peer);
  return out;
}

int64_t RequestQueue::unsent_bytes() const {
  int64_t sum = 0;
  for (const auto& [peer, entry] : peers_) sum += entry.active_bytes;
  return sum;
}

bool RequestQueue::has_waiting() const {
  for (const auto& [peer, entry] : peers_)
    if (!entry.waiting.empty()) return true;
  return false;
}

size_t RequestQueue::outstanding() const {
  size_t sum = 0;
  for (const auto& [peer, entry] : peers_) sum += entry.waiting.size() + entry.active.size();
  return sum;
}

}  // namespace tessera::data
