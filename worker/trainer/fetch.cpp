#include "worker/trainer/fetch.h"

#include <algorithm>
#include <cstring>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/trainer/header_check.h"

namespace tessera::trainer {
namespace {

constexpr Millis kLateMs = 500, kQuietMs = 1000;
constexpr double kSlowestTile = 5;  // seconds; a pause longer than that tells nothing of the next tile
constexpr int kForgotten = 40;  // times the time after which silence is late
// More tiles ahead hide nothing more, and every change of world throws them away: a loader works through what it was asked
// for before it comes to what is needed now.
constexpr int64_t kMostTilesAhead = 64;

}  // namespace

Fetcher::Fetcher(const FunctionConfig& function, int64_t budget_bytes, std::string sender, const std::string& transport)
    : function_(function),
      tile_bytes_(tile_pixel_bytes(function)),
      window_(size_t(std::clamp<int64_t>(budget_bytes / std::max<int64_t>(1, tile_bytes_), 2, kMostTilesAhead))),
      sender_(std::move(sender)),
      shared_host_(transport == "tcp" ? "" : host_identity()),
      wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (transport == "shm" && shared_host_.empty()) log_warning("operation.transport is shm, but this host does not tell who it is (no /proc?): tiles come over TCP");
  thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
}

Fetcher::~Fetcher() {
  thread_.request_stop();
  wake();
  thread_.join();
  ::close(wake_fd_);
}

void Fetcher::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = ::write(wake_fd_, &one, sizeof one);
}

void Fetcher::set_loaders(const proto::ShardAssignment& assignment) {
  {
    std::lock_guard lock(mutex_);
    new_assignment_ = assignment;
  }
  wake();
}

void Fetcher::want(Step first_step, Step end_step, TileRange tiles) {
  {
    std::lock_guard lock(mutex_);
    cursor_ = {first_step, tiles.begin}, end_step_ = end_step, tiles_ = tiles;
    extra_.clear();
    std::erase_if(ready_, [&](const auto& entry) { return !wanted(entry.first); });
  }
  wake();
}

void Fetcher::also(Step step, TileIndex tile) {
  {
    std::lock_guard lock(mutex_);
    extra_.insert({step, tile});
  }
  wake();
}

bool Fetcher::wanted(const Key& key) const { return extra_.contains(key) || (key >= cursor_ && key.first < end_step_ && key.second >= tiles_.begin && key.second < tiles_.end); }

Result<FetchedTile> Fetcher::take(Step step, TileIndex tile, const collective::AbortSignal& abort) {
  std::unique_lock lock(mutex_);
  Millis said = monotonic_ms();
  for (;;) {
    if (const auto it = ready_.find({step, tile}); it != ready_.end()) {
      FetchedTile out = std::move(it->second);
      if (extra_.erase({step, tile}) == 0) cursor_ = tile + 1 < tiles_.end ? Key{step, tile + 1} : Key{step + 1, tiles_.begin};
      std::erase_if(ready_, [&](const auto& entry) { return !wanted(entry.first); });
      lock.unlock();
      wake();
      return out;
    }
    if (abort.raised()) return fail(ErrorCode::kRebuildWorld, "[fetch] aborted");
    if (fatal_) return tl::unexpected(*fatal_);
    arrived_.wait_for(lock, std::chrono::milliseconds(50));
    if (monotonic_ms() - said > 5000) {
      log_warning("waiting for tile {} of step {}: no loader has delivered it yet", tile, step);
      said = monotonic_ms();
    }
  }
}

void Fetcher::run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    reconcile_loaders();
    const Millis now = monotonic_ms();
    drop_unwanted();
    drop_late(now);
    ask_ahead(now);
    if (!receive_all()) wait_for_message();
  }
}

// Nothing is here: sleeps until a message, a wish or an assignment comes, or lateness must be looked at. A socket can be
// waited for one at a time, so with several loaders the turns are short.
void Fetcher::wait_for_message() {
  std::set<std::string> asked;
  for (const auto& [id, request] : requests_) asked.insert(request.loader);
  if (asked.empty()) {
    pollfd wait{wake_fd_, POLLIN, 0};
    poll(&wait, 1, 50);
  } else {
    const std::string& name = requests_.begin()->second.loader;
    Loader& loader = loaders_.at(name);
    if (auto incoming = loader.client->receive(asked.size() > 1 ? 2 : 50)) loader.heard = monotonic_ms(), on_message(std::move(*incoming));
  }
  uint64_t count;
  [[maybe_unused]] const ssize_t got = ::read(wake_fd_, &count, sizeof count);
}

void Fetcher::reconcile_loaders() {
  std::optional<proto::ShardAssignment> assignment;
  {
    std::lock_guard lock(mutex_);
    assignment = std::exchange(new_assignment_, std::nullopt);
  }
  if (!assignment) return;
  std::set<std::string> listed, replaced;  // replaced: a new process of that name, which was never asked
  for (const auto& share : assignment->loaders) {
    listed.insert(share.name);
    Loader& loader = loaders_[share.name];
    if (loader.client && loader.address == share.data_address) continue;
    proto::ChannelOptions options;
    options.sender = sender_;
    auto client = proto::Client::connect(share.data_address, options);
    if (!client) {
      log_error("loader {}: {}", share.name, client.error().message);
      loaders_.erase(share.name);
      continue;
    }
    client->watch(wake_fd_);
    loader = {std::make_unique<proto::Client>(std::move(*client)), share.data_address};
    replaced.insert(share.name);
  }
  std::vector<uint64_t> orphans;
  for (const auto& [id, request] : requests_)
    if (!loaders_.contains(request.loader) || !listed.contains(request.loader) || replaced.contains(request.loader)) orphans.push_back(id);
  for (const uint64_t id : orphans) requests_.erase(id);
  for (auto& [key, by_loader] : refusals_) std::erase_if(by_loader, [&](const auto& entry) { return !listed.contains(entry.first) || replaced.contains(entry.first); });
  std::erase_if(loaders_, [&](const auto& entry) { return !listed.contains(entry.first); });
}

// The first wanted tile that is neither here nor on the way. With the budget full a tile from further ahead makes room
// for it: the one that is needed next must never wait for those that come after it.
std::optional<Fetcher::Key> Fetcher::next_missing() {
  std::set<Key> busy;
  for (const auto& [id, request] : requests_) busy.insert(request.key);
  for (const Key& key : extra_)
    if (!ready_.contains(key) && !busy.contains(key)) return key;
  if (tiles_.empty()) return std::nullopt;
  const Step last = std::min(end_step_, cursor_.first + Step(window_) + 1);
  for (Step step = cursor_.first; step < last; ++step)
    for (TileIndex tile = tiles_.begin; tile < tiles_.end; ++tile) {
      const Key key{step, tile};
      if (!wanted(key) || ready_.contains(key) || busy.contains(key)) continue;
      if (ready_.size() + busy.size() < window_) return key;
      if (ready_.empty() || ready_.rbegin()->first < key) return std::nullopt;
      ready_.erase(std::prev(ready_.end()));
      return key;
    }
  return std::nullopt;
}

// Requests whose tile nobody waits for any more (a world ended, a step was reached otherwise).
void Fetcher::drop_unwanted() {
  std::lock_guard lock(mutex_);
  std::erase_if(refusals_, [&](const auto& entry) { return entry.second.empty() || !wanted(entry.first); });
  std::erase_if(requests_, [&](const auto& entry) {
    if (wanted(entry.second.key)) return false;
    if (const auto loader = loaders_.find(entry.second.loader); loader != loaders_.end()) (void)loader->second.client->send(proto::TileCancel{entry.first});
    return true;
  });
}

void Fetcher::ask_ahead(Millis now) {
  while (!loaders_.empty()) {
    std::optional<Key> key;
    {
      std::lock_guard lock(mutex_);
      key = next_missing();
    }
    if (!key || !send_request(*key, now)) return;
  }
}

// Spread over the loaders that are not quiet; any would do. False: none can be asked now.
bool Fetcher::send_request(const Key& key, Millis now) {
  std::vector<std::string> awake;
  const auto refused = refusals_.find(key);
  for (const auto& [name, loader] : loaders_)
    if (loader.quiet_until <= now && (refused == refusals_.end() || !refused->second.contains(name))) awake.push_back(name);
  if (refused != refusals_.end() && refused->second.size() == loaders_.size()) {
    std::lock_guard lock(mutex_);
    fatal_ = refused->second.begin()->second;
    arrived_.notify_all();
    return false;
  }
  if (awake.empty()) return false;
  const std::string& name = awake[size_t(key.first * function_.batch.tiles + key.second) % awake.size()];
  const uint64_t id = next_id_++;
  Loader& loader = loaders_.at(name);
  if (auto sent = loader.client->send(proto::TileRequest{id, key.first, key.second, tile_bytes_, loader.takes_shared ? shared_host_ : ""}); !sent) {
    loader.quiet_until = now + kQuietMs;
    return true;
  }
  requests_[id] = {key, name, now, std::nullopt, {}, 0, now};
  return true;
}

// A loader works through its requests one after the other: while it delivers, the others are not late, unless one has been
// forgotten.
void Fetcher::drop_late(Millis now) {
  const Millis late = std::max<Millis>(kLateMs, Millis(4000 * tile_seconds_)) * (loaders_.size() > 1 ? 1 : 10);
  std::vector<uint64_t> expired;
  for (const auto& [id, request] : requests_) {
    const Millis silent = now - std::max(request.last_progress, loaders_.at(request.loader).heard);
    if (silent > late || now - request.last_progress > kForgotten * late) expired.push_back(id);
  }
  for (const uint64_t id : expired) give_up(id, "no answer for " + std::to_string(late) + " ms");
}

void Fetcher::give_up(uint64_t id, const std::string& why) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  log_info("loader {}: tile {} of step {}: {}; asking again{}", it->second.loader, it->second.key.second, it->second.key.first, why, loaders_.size() > 1 ? " elsewhere" : "");
  if (const auto loader = loaders_.find(it->second.loader); loader != loaders_.end()) {
    (void)loader->second.client->send(proto::TileCancel{id});
    loader->second.quiet_until = monotonic_ms() + (loaders_.size() > 1 ? kQuietMs : 20);
  }
  requests_.erase(it);
}

bool Fetcher::receive_all() {
  bool any = false;
  for (auto& [name, loader] : loaders_)
    while (auto incoming = loader.client->receive(0)) loader.heard = monotonic_ms(), on_message(std::move(*incoming)), any = true;
  return any;
}

void Fetcher::on_message(proto::Incoming incoming) {
  if (auto* header = std::get_if<proto::TileHeader>(&incoming.envelope.payload)) {
    const auto it = requests_.find(header->request_id);
    if (it == requests_.end()) return;
    Request& request = it->second;
    if (Key{header->step, header->tile} != request.key)
      return give_up(header->request_id, "the answer is tile " + std::to_string(header->tile) + " of step " + std::to_string(header->step));
    if (auto fits = check_header(*header, function_); !fits) return give_up(header->request_id, fits.error().message);
    request.last_progress = monotonic_ms();
    request.header = std::move(*header);
    if (request.header->shared.pid != 0) return on_shared(it->first);
    request.pixels.resize(size_t(request.header->pixel_bytes));
  } else if (const auto* frame = std::get_if<proto::TileFrame>(&incoming.envelope.payload)) {
    on_frame(*frame, incoming.raw);
  } else if (const auto* error = std::get_if<proto::TileError>(&incoming.envelope.payload)) {
    if (error->exit_code != 0) on_refusal(*error);
    else give_up(error->request_id, error->reason);
  }
}

// The loader cannot make this tile, now or later; another one may have a good copy of the data. send_request() decides
// that none has.
void Fetcher::on_refusal(const proto::TileError& error) {
  const auto it = requests_.find(error.request_id);
  if (it == requests_.end()) return;
  const auto& [key, loader] = std::pair(it->second.key, it->second.loader);
  if (loaders_.size() > 1) log_warning("loader {} cannot deliver tile {} of step {}: {}; asking elsewhere", loader, key.second, key.first, error.reason);
  refusals_[key].insert_or_assign(loader, Error{ErrorCode::kFixData, error.reason, error.exit_code});
  requests_.erase(it);
}

void Fetcher::on_shared(uint64_t id) {
  Request& request = requests_.at(id);
  Loader& loader = loaders_.at(request.loader);
  const proto::SharedPixels& place = request.header->shared;
  const auto pixels = loader.views.get(place.pid, place.fd, place.nonce, request.header->pixel_bytes);
  if (!pixels) {
    log_warning("loader {}: {}; its tiles come over TCP from now on", request.loader, pixels.error().message);
    loader.takes_shared = false;
    release(id);
    requests_.erase(id);
    return;
  }
  // Copied before it is verified: what is hashed is what will be used.
  request.pixels.assign(*pixels, *pixels + request.header->pixel_bytes);
  release(id);
  complete(id);
}

void Fetcher::release(uint64_t id) { (void)loaders_.at(requests_.at(id).loader).client->send(proto::TileCancel{id}); }

void Fetcher::on_frame(const proto::TileFrame& frame, const std::string& raw) {
  const auto it = requests_.find(frame.request_id);
  if (it == requests_.end()) return;
  Request& request = it->second;
  const int64_t size = int64_t(raw.size());
  if (!request.header || frame.offset < 0 || frame.offset != request.received_bytes || frame.offset + size > int64_t(request.pixels.size()))
    return give_up(frame.request_id, "a frame does not fit");
  std::memcpy(request.pixels.data() + frame.offset, raw.data(), raw.size());
  request.received_bytes += size;
  request.last_progress = monotonic_ms();
  if (request.received_bytes == int64_t(request.pixels.size())) complete(frame.request_id);
}

void Fetcher::complete(uint64_t id) {
  Request& request = requests_.at(id);
  const Hash128 pixel_hash = hash_bytes(request.pixels.data(), request.pixels.size());
  if (pixel_hash != request.header->pixel_hash || proto::tile_digest(*request.header) != request.header->digest)
    return give_up(id, "hashes differ: the bytes were damaged on the way");
  Loader& loader = loaders_.at(request.loader);
  const Millis now = monotonic_ms();
  const double took = std::min(kSlowestTile, double(now - std::max(request.asked, std::exchange(loader.completed, now))) / 1000.0);
  tile_seconds_ = std::max(took, 0.9 * tile_seconds_ + 0.1 * took);
  {
    std::lock_guard lock(mutex_);
    if (wanted(request.key)) ready_[request.key] = {std::move(*request.header), std::move(request.pixels)};
    arrived_.notify_all();
  }
  requests_.erase(id);
}

}  // namespace tessera::trainer
