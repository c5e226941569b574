#include "worker/trainer/fetch.h"

#include <algorithm>
#include <cstring>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

namespace tessera::trainer {
namespace {

constexpr Millis kLateMs = 500, kQuietMs = 1000;

}  // namespace

Fetcher::Fetcher(const FunctionConfig& function, int64_t budget_bytes, std::string sender)
    : function_(function),
      tile_bytes_(tile_pixel_bytes(function)),
      window_(size_t(std::max<int64_t>(2, budget_bytes / std::max<int64_t>(1, tile_bytes_)))),
      sender_(std::move(sender)),
      wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
}

Fetcher::~Fetcher() {
  thread_.request_stop();
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = ::write(wake_fd_, &one, sizeof one);
  thread_.join();
  ::close(wake_fd_);
}

void Fetcher::set_loaders(const proto::ShardAssignment& assignment) {
  std::lock_guard lock(mutex_);
  new_assignment_ = assignment;
}

void Fetcher::want(Step first_step, Step end_step, TileRange tiles) {
  std::lock_guard lock(mutex_);
  first_step_ = first_step, end_step_ = end_step, tiles_ = tiles;
  std::erase_if(ready_, [&](const auto& entry) {
    const auto& [step, tile] = entry.first;
    return step < first_step || step >= end_step || tile < tiles.begin || tile >= tiles.end;
  });
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = ::write(wake_fd_, &one, sizeof one);
}

Result<FetchedTile> Fetcher::take(Step step, TileIndex tile, const collective::AbortSignal& abort) {
  std::unique_lock lock(mutex_);
  Millis said = monotonic_ms();
  for (;;) {
    if (const auto it = ready_.find({step, tile}); it != ready_.end()) {
      FetchedTile out = std::move(it->second);
      ready_.erase(it);
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t put = ::write(wake_fd_, &one, sizeof one);
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
    drop_late(now);
    ask_ahead(now);
    if (receive_all()) continue;
    if (requests_.empty() || loaders_.empty()) {
      pollfd wait{wake_fd_, POLLIN, 0};
      poll(&wait, 1, 20);
    } else if (auto incoming = loaders_.at(requests_.begin()->second.loader).client->receive(2)) {
      on_message(requests_.begin()->second.loader, std::move(*incoming));
    }
    uint64_t count;
    [[maybe_unused]] const ssize_t got = ::read(wake_fd_, &count, sizeof count);
  }
}

void Fetcher::reconcile_loaders() {
  std::optional<proto::ShardAssignment> assignment;
  {
    std::lock_guard lock(mutex_);
    assignment = std::exchange(new_assignment_, std::nullopt);
  }
  if (!assignment) return;
  std::set<std::string> listed;
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
    loader = {std::make_unique<proto::Client>(std::move(*client)), share.data_address, 0};
  }
  std::vector<uint64_t> orphans;
  for (const auto& [id, request] : requests_)
    if (!loaders_.contains(request.loader) || !listed.contains(request.loader)) orphans.push_back(id);
  for (const uint64_t id : orphans) requests_.erase(id);
  std::erase_if(loaders_, [&](const auto& entry) { return !listed.contains(entry.first); });
}

// The first wanted tile that is neither here nor on the way; by step, then tile.
std::optional<Fetcher::Key> Fetcher::next_missing() const {
  std::set<Key> busy;
  for (const auto& [id, request] : requests_) busy.insert(request.key);
  if (ready_.size() + busy.size() >= window_ || tiles_.empty()) return std::nullopt;
  const Step last = std::min(end_step_, first_step_ + Step(window_) + 1);
  for (Step step = first_step_; step < last; ++step)
    for (TileIndex tile = tiles_.begin; tile < tiles_.end; ++tile)
      if (!ready_.contains({step, tile}) && !busy.contains({step, tile})) return Key{step, tile};
  return std::nullopt;
}

void Fetcher::ask_ahead(Millis now) {
  if (loaders_.empty()) return;
  for (;;) {
    std::optional<Key> key;
    {
      std::lock_guard lock(mutex_);
      key = next_missing();
    }
    if (!key) return;
    // Spread over the loaders that are not quiet; any would do.
    std::vector<std::string> awake;
    for (const auto& [name, loader] : loaders_)
      if (loader.quiet_until <= now) awake.push_back(name);
    if (awake.empty()) return;
    const std::string& name = awake[size_t(key->first * function_.batch.tiles + key->second) % awake.size()];
    const uint64_t id = next_id_++;
    requests_[id] = {*key, name, now, std::nullopt, {}, 0};
    if (auto sent = loaders_.at(name).client->send(proto::TileRequest{id, key->first, key->second, tile_bytes_}); !sent) {
      requests_.erase(id);
      loaders_.at(name).quiet_until = now + kQuietMs;
    }
  }
}

void Fetcher::drop_late(Millis now) {
  const Millis late = std::max<Millis>(kLateMs, Millis(4000 * tile_seconds_ * double(std::max<size_t>(1, requests_.size()))));
  std::vector<uint64_t> expired;
  for (const auto& [id, request] : requests_)
    if (now - request.last_progress > (loaders_.size() > 1 ? late : 10 * late)) expired.push_back(id);
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
    while (auto incoming = loader.client->receive(0)) on_message(name, std::move(*incoming)), any = true;
  return any;
}

void Fetcher::on_message(const std::string& loader, proto::Incoming incoming) {
  if (auto* header = std::get_if<proto::TileHeader>(&incoming.envelope.payload)) {
    const auto it = requests_.find(header->request_id);
    if (it == requests_.end()) return;
    Request& request = it->second;
    if (Key{header->step, header->tile} != request.key || header->pixel_bytes != tile_bytes_ || header->contexts.size() != size_t(function_.masks.contexts) ||
        header->image_size != function_.model.image_size || header->grid != function_.model.grid()) {
      return give_up(header->request_id, "its header is not what was asked for");
    }
    request.last_progress = monotonic_ms();
    request.pixels.resize(size_t(header->pixel_bytes));
    request.header = std::move(*header);
  } else if (const auto* frame = std::get_if<proto::TileFrame>(&incoming.envelope.payload)) {
    on_frame(loader, *frame, incoming.raw);
  } else if (const auto* error = std::get_if<proto::TileError>(&incoming.envelope.payload)) {
    if (error->exit_code != 0) {
      std::lock_guard lock(mutex_);
      fatal_ = Error{ErrorCode::kFixData, error->reason, error->exit_code};
      arrived_.notify_all();
    } else {
      give_up(error->request_id, error->reason);
    }
  }
}

void Fetcher::on_frame(const std::string&, const proto::TileFrame& frame, const std::string& raw) {
  const auto it = requests_.find(frame.request_id);
  if (it == requests_.end()) return;
  Request& request = it->second;
  const int64_t size = int64_t(raw.size());
  if (!request.header || frame.offset < 0 || frame.offset != request.received_bytes || frame.offset + size > int64_t(request.pixels.size()))
    return give_up(frame.request_id, "a frame does not fit");
  std::memcpy(request.pixels.data() + frame.offset, raw.data(), raw.size());
  request.received_bytes += size;
  const Millis now = monotonic_ms();
  tile_seconds_ = 0.9 * tile_seconds_ + 0.1 * double(now - request.last_progress) / 1000.0;
  request.last_progress = now;
  if (request.received_bytes == int64_t(request.pixels.size())) complete(frame.request_id);
}

void Fetcher::complete(uint64_t id) {
  Request& request = requests_.at(id);
  const Hash128 pixel_hash = hash_bytes(request.pixels.data(), request.pixels.size());
  if (pixel_hash != request.header->pixel_hash || proto::tile_digest(*request.header) != request.header->digest)
    return give_up(id, "hashes differ: the bytes were damaged on the way");
  {
    std::lock_guard lock(mutex_);
    const auto& [step, tile] = request.key;
    if (step >= first_step_ && step < end_step_ && tile >= tiles_.begin && tile < tiles_.end)
      ready_[request.key] = {std::move(*request.header), std::move(request.pixels)};
    arrived_.notify_all();
  }
  requests_.erase(id);
}

}  // namespace tessera::trainer
