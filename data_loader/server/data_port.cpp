#include "data_loader/server/data_port.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"

namespace tessera::data {
namespace {

constexpr int kIdleWaitMs = 200, kBlockedWaitMs = 2;

void add_one(int event_fd) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = ::write(event_fd, &one, sizeof one);
}

// 0: the trainer asks again, here or elsewhere; otherwise the run stops with it.
int answer_code(const Error& error) { return error.code == ErrorCode::kIo || error.code == ErrorCode::kRetry ? 0 : exit_code_of(error); }

}  // namespace

DataPort::DataPort(DataPortOptions options, proto::Server server)
    : options_(std::move(options)), server_(std::move(server)), port_(server_.port()), answers_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), queue_(options_.limits) {
  server_.watch(answers_fd_);
}

Result<std::unique_ptr<DataPort>> DataPort::start(DataPortOptions options) {
  proto::ChannelOptions channel;
  channel.sender = options.name;
  channel.high_water_mark = kFramesInFlight;
  TESSERA_ASSIGN(proto::Server server, proto::Server::bind(options.bind, options.port, channel));
  std::unique_ptr<DataPort> out(new DataPort(std::move(options), std::move(server)));
  DataPort* raw = out.get();
  raw->loop_ = std::jthread([raw](std::stop_token stop) { raw->loop(stop); });
  return out;
}

DataPort::~DataPort() {
  for (auto& worker : workers_) worker.request_stop();
  loop_.request_stop();
  server_.wake();
  loop_.join();
  workers_.clear();
  ::close(answers_fd_);
}

void DataPort::serve(std::shared_ptr<const Dataset> dataset, const FunctionConfig& function, int threads, const std::string& run_id) {
  {
    std::lock_guard lock(mutex_);
    served_ = std::make_shared<const Served>(Served{std::move(dataset), function, run_id});
  }
  while (int(workers_.size()) < threads) workers_.emplace_back([this](std::stop_token stop) { work(stop); });
  worker_count_ = workers_.size();
  server_.wake();
}

std::shared_ptr<const DataPort::Served> DataPort::served() const {
  std::lock_guard lock(mutex_);
  return served_;
}

proto::LoaderStatus DataPort::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

// ---- the loop thread ----

void DataPort::loop(std::stop_token stop) {
  while (!stop.stop_requested()) {
    const bool blocked = send_ready();
    if (auto incoming = server_.receive(blocked ? kBlockedWaitMs : kIdleWaitMs)) {
      on_message(std::move(*incoming));
      for (int more = 0; more < 64; ++more) {
        incoming = server_.receive(0);
        if (!incoming) break;
        on_message(std::move(*incoming));
      }
    }
    collect();
    for (const std::string& peer : queue_.stalled(monotonic_ms())) {
      log_warning("a trainer has taken nothing for {} s: its requests are forgotten", options_.limits.stalled_ms / 1000);
      queue_.forget(peer);
    }
    free_slots();
    hand_out();
  }
}

// Of answers that nobody waits for any more: taken, cancelled, or their trainer forgotten.
void DataPort::free_slots() {
  std::erase_if(held_, [&](const auto& entry) { return !queue_.wanted(entry.first.first, entry.first.second); });
}

void DataPort::on_message(proto::Incoming incoming) {
  auto& payload = incoming.envelope.payload;
  if (auto* tile = std::get_if<proto::TileRequest>(&payload)) return on_request(incoming.peer, *tile);
  if (auto* samples = std::get_if<proto::SampleRequest>(&payload)) return on_request(incoming.peer, std::move(*samples));
  if (const auto* cancel = std::get_if<proto::TileCancel>(&payload)) {
    queue_.progress(incoming.peer, monotonic_ms());
    return queue_.cancel(incoming.peer, cancel->request_id);
  }
  if (!std::holds_alternative<proto::DatasetRequest>(payload)) return;
  const auto now = served();
  if (!now) return refuse(incoming.peer, 0, "[data_loader] the dataset is still being opened", 0);
  const Manifest& manifest = *now->dataset->manifest;
  (void)server_.send(incoming.peer, proto::DatasetInfo{manifest.digest(), manifest.sample_count(), manifest.label_names(), manifest.class_names()});
}

void DataPort::on_request(const std::string& peer, Request request) {
  const auto now = served();
  const uint64_t id = request_id(request);
  if (!now) return refuse(peer, id, "[data_loader] the dataset is still being opened", 0);
  int64_t bytes = tile_pixel_bytes(now->function);
  if (const auto* samples = std::get_if<proto::SampleRequest>(&request)) {
    bytes = std::min<int64_t>(int64_t(samples->sample_ids.size()) * samples->image_size * samples->image_size * 3, int64_t{64} << 20);
  } else if (const int64_t credit = std::get<proto::TileRequest>(request).credit_bytes; credit < bytes) {
    return refuse(peer, id, "[data_loader] a tile has " + std::to_string(bytes) + " bytes of pixels, the request gives credit for " + std::to_string(credit) + "; raise operation.host_prefetch_bytes", exit_codes::kConfig);
  }
  if (const std::string why = queue_.add(peer, std::move(request), std::max<int64_t>(1, bytes), monotonic_ms()); !why.empty()) refuse(peer, id, why, 0);
}

void DataPort::refuse(const std::string& peer, uint64_t id, const std::string& why, int exit_code) {
  (void)server_.send(peer, proto::TileError{id, why, exit_code});  // a peer that is gone or full asks again by itself
}

void DataPort::hand_out() {
  std::lock_guard lock(mutex_);
  while (work_.size() < worker_count_) {
    auto next = queue_.start();
    if (!next) break;
    work_.push_back(std::move(*next));
    has_work_.notify_one();
  }
  status_.queue = int32_t(queue_.outstanding());
  status_.unsent_bytes = queue_.unsent_bytes();
  const double now = monotonic_seconds();
  if (held_up_) status_.blocked_seconds += now - looked_;
  held_up_ = work_.size() < worker_count_ && queue_.has_waiting();
  looked_ = now;
}

void DataPort::collect() {
  uint64_t count;
  [[maybe_unused]] const ssize_t got = ::read(answers_fd_, &count, sizeof count);
  std::lock_guard lock(mutex_);
  for (Answer& answer : answers_) {
    queue_.progress(answer.peer, monotonic_ms());
    ready_.push_back(std::move(answer));
  }
  answers_.clear();
  if (served_ && served_->run_id != run_id_) server_.set_run_id(run_id_ = served_->run_id);
}

// Sends what the sockets take; true when some peer's queue is full.
bool DataPort::send_ready() {
  const double begin = monotonic_seconds();
  bool blocked = false;
  std::set<std::string> full;  // a peer's answers go out one after the other
  for (auto it = ready_.begin(); it != ready_.end();) {
    if (!full.contains(it->peer) && !send_answer(*it)) full.insert(it->peer);
    if (it->messages.empty()) it = ready_.erase(it);
    else ++it, blocked = true;
  }
  std::lock_guard lock(mutex_);
  status_.send_seconds += monotonic_seconds() - begin;
  return blocked;
}

// False when the peer takes no more now.
bool DataPort::send_answer(Answer& answer) {
  while (!answer.messages.empty()) {
    if (!queue_.wanted(answer.peer, answer.ticket)) {
      answer.messages.clear();  // cancelled or forgotten; a frame that is missing spoils nothing, the trainer has given up
      return true;
    }
    Message& message = answer.messages.front();
    if (const Status sent = server_.send(answer.peer, message.payload, message.raw); !sent) {
      if (sent.error().code == ErrorCode::kRetry) return false;
      queue_.forget(answer.peer);
      continue;
    }
    answer.messages.pop_front();
    queue_.progress(answer.peer, monotonic_ms());
  }
  if (answer.slot) held_[{answer.peer, answer.ticket}] = std::move(answer.slot);
  else queue_.finish(answer.peer, answer.ticket);
  return true;
}

// ---- the workers ----

void DataPort::work(std::stop_token stop) {
  Worker worker;
  for (;;) {
    const double begin = monotonic_seconds();
    std::optional<Work> next;
    {
      std::unique_lock lock(mutex_);
      if (!has_work_.wait(lock, stop, [&] { return !work_.empty(); })) return;
      next = std::move(work_.front());
      work_.pop_front();
    }
    const double waited = monotonic_seconds() - begin;
    const StageSeconds before = worker.maker ? worker.maker->seconds() : StageSeconds{};
    const auto maker_before = worker.made_for;
    Answer made{next->peer, next->ticket, {}, nullptr};
    made.messages = answer(worker, next->request, &made.slot);
    note(maker_before == worker.made_for ? before : StageSeconds{}, worker.maker ? worker.maker->seconds() : StageSeconds{}, waited);
    {
      std::lock_guard lock(mutex_);
      answers_.push_back(std::move(made));
    }
    add_one(answers_fd_);
  }
}

Result<TileMaker*> DataPort::maker_of(Worker& worker) {
  const auto now = served();
  if (worker.maker && worker.made_for == now) return &*worker.maker;
  TESSERA_ASSIGN(TileMaker maker, TileMaker::create(now->dataset, now->function));
  worker.maker.emplace(std::move(maker));
  worker.made_for = now;
  return &*worker.maker;
}

// Null: the pixels go in frames.
std::shared_ptr<SharedBuffer> DataPort::slot_for(const proto::TileRequest& request, const FunctionConfig& function) {
  if (request.shared_host.empty() || request.shared_host != host_identity()) return nullptr;
  auto slot = slots_.take(tile_pixel_bytes(function));
  if (slot) return std::move(*slot);
  log_warning("{}; this tile goes over TCP", slot.error().message);
  return nullptr;
}

std::deque<DataPort::Message> DataPort::answer(Worker& worker, const Request& request, std::shared_ptr<SharedBuffer>* slot) {
  const uint64_t id = request_id(request);
  std::deque<Message> out;
  const auto failed = [&](const Error& error) {
    log_warning("{}", error.message);
    out.push_back({proto::TileError{id, error.message, answer_code(error)}, {}});
    return std::move(out);
  };
  const auto maker = maker_of(worker);
  if (!maker) return failed(maker.error());
  if (const auto* tile = std::get_if<proto::TileRequest>(&request)) {
    *slot = slot_for(*tile, worker.made_for->function);
    auto made = (*maker)->make(tile->step, tile->tile, *slot ? std::span((*slot)->data(), size_t((*slot)->size())) : std::span<uint8_t>());
    if (!made) {
      slot->reset();
      return failed(made.error());
    }
    note_tile(*made);
    if (*slot) {
      made->header.request_id = id, made->header.frame_count = 0;
      made->header.shared = {::getpid(), (*slot)->descriptor(), (*slot)->nonce()};
      out.push_back({std::move(made->header), {}});
      return out;
    }
    return as_messages(std::move(*made), id);
  }
  const auto& wanted = std::get<proto::SampleRequest>(request);
  auto made = (*maker)->samples(wanted.sample_ids, wanted.image_size);
  if (!made) return failed(made.error());
  made->tile.request_id = id;
  const Pixels pixels = made->pixels;
  out.push_back({std::move(made->tile), {pixels->data(), pixels->size(), pixels}});
  return out;
}

std::deque<DataPort::Message> DataPort::as_messages(MadeTile tile, uint64_t id) {
  std::deque<Message> out;
  tile.header.request_id = id;
  const int64_t total = tile.header.pixel_bytes;
  out.push_back({std::move(tile.header), {}});
  for (int64_t offset = 0, index = 0; offset < total; offset += kFrameBytes, ++index) {
    const int64_t size = std::min(kFrameBytes, total - offset);
    out.push_back({proto::TileFrame{id, int32_t(index), offset}, {tile.pixels->data() + offset, size_t(size), tile.pixels}});
  }
  return out;
}

void DataPort::note(const StageSeconds& before, const StageSeconds& after, double waited) {
  std::lock_guard lock(mutex_);
  status_.read_seconds += after.read - before.read;
  status_.decode_seconds += after.decode - before.decode;
  status_.resize_seconds += after.resize - before.resize;
  status_.mask_seconds += after.mask - before.mask;
  status_.idle_seconds += waited;
}

void DataPort::note_tile(const MadeTile& tile) {
  std::lock_guard lock(mutex_);
  status_.images_total += int64_t(tile.header.sample_ids.size());
  status_.shared_tiles += tile.pixels == nullptr;
  bad_.insert(tile.header.grey_samples.begin(), tile.header.grey_samples.end());
  status_.bad_samples = int64_t(bad_.size());
  if (!tile.grey_reason.empty()) status_.last_bad = tile.grey_reason;
}

}  // namespace tessera::data
