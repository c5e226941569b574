#include "tests/integration/worker/fakes.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/clock.h"
#include "common/file.h"
#include "common/sealed_json.h"
#include "common/version.h"

namespace tessera::trainer::test {
namespace {

using nlohmann::json;

constexpr int64_t kFrameBytes = 4096;

Config parse(const std::string& yaml) {
  auto config = parse_config(yaml, "test", {});
  TESSERA_CHECK(config.has_value(), config ? "" : config.error().message);
  return std::move(*config);
}

std::vector<uint16_t> mask(int64_t images, int64_t first, int64_t length) {
  std::vector<uint16_t> out;
  for (int64_t i = 0; i < images; ++i)
    for (int64_t p = 0; p < length; ++p) out.push_back(uint16_t(first + p));
  return out;
}

template <typename Counter>
bool spend(Counter& counter) {
  int left = counter.load();
  while (left > 0)
    if (counter.compare_exchange_weak(left, left - 1)) return true;
  return false;
}

}  // namespace

FunctionConfig tiny_function(const std::string& more) {
  return parse("function:\n  seed: 5\n  model: {name: custom, patch_size: 8, image_size: 64, embed_dim: 24, depth: 2, num_heads: 3}\n"
               "  predictor: {embed_dim: 12, depth: 1, num_heads: 3}\n  masks: {min_keep: 2}\n  batch: {tile_size: 2, tiles: 6}\n"
               "  optimizer: {lr: 1.0e-3, start_lr: 2.0e-4, ema: [0.9, 1.0]}\n  steps: 6\n  warmup_steps: 2\n" + more)
      .function;
}

OperationConfig tiny_operation(const std::string& more) { 
  const std::string checkpoint = more.find("checkpoint:") == std::string::npos ? "  checkpoint: {every_steps: 0}\n" : "";
  return parse("operation:\n  compute_threads: 1\n" + checkpoint + more).operation;
 }

FetchedTile make_tile(const FunctionConfig& f, Step step, TileIndex tile) {
  FetchedTile out;
  proto::TileHeader& h = out.header;
  const int64_t images = f.batch.tile_size;
  h.step = step, h.tile = tile;
  h.image_size = int32_t(f.model.image_size), h.grid = int32_t(f.model.grid());
  h.context_length = int32_t(20 + (step + tile) % 5);  // another shape for each tile, as truncation makes them
  h.target_length = 9;
  for (int64_t i = 0; i < images; ++i) {
    h.sample_ids.push_back((step * f.batch.tiles + tile) * images + i);
    h.crops.push_back({0, 0, 64, 64, false});
  }
  h.contexts.assign(size_t(f.masks.contexts), mask(images, 1, h.context_length));
  for (int64_t t = 0; t < f.masks.targets; ++t) h.targets.push_back(mask(images, 30 + 5 * t, h.target_length));
  if (step == 2 && tile % 2 == 1) h.grey_samples = {h.sample_ids[0]};
  h.pixel_bytes = tile_pixel_bytes(f);
  out.pixels.resize(size_t(h.pixel_bytes));
  uint64_t z = uint64_t(step) * 1000003 + uint64_t(tile) * 7919 + 1;
  for (auto& pixel : out.pixels) pixel = uint8_t(mix64(z++) >> 56);
  h.frame_count = int32_t((h.pixel_bytes + kFrameBytes - 1) / kFrameBytes);
  h.pixel_hash = hash_bytes(out.pixels.data(), out.pixels.size());
  h.digest = proto::tile_digest(h);
  return out;
}

FakeLoader::FakeLoader(const FunctionConfig& function, std::string name)
    : function_(function), name_(std::move(name)), server_(*proto::Server::bind("127.0.0.1", 0, {})), port_(server_.port()) {
  thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
}
FakeLoader::~FakeLoader() {
  thread_.request_stop();
  server_.wake();
}
proto::LoaderShare FakeLoader::share() const { return {name_, "tcp://127.0.0.1:" + std::to_string(port_), 0, 1}; }
int FakeLoader::requests_of(Step step, TileIndex tile) const {
  std::lock_guard lock(mutex_);
  const auto it = asked_.find({step, tile});
  return it == asked_.end() ? 0 : it->second;
}

void FakeLoader::run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    const auto incoming = server_.receive(100);
    if (!incoming) continue;
    const auto* request = std::get_if<proto::TileRequest>(&incoming->envelope.payload);
    if (!request) continue;
    ++requests_;
    {
      std::lock_guard lock(mutex_);
      ++asked_[{request->step, request->tile}];
    }
    if (behave.silent) continue;
    if (behave.delay_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(behave.delay_ms));
    if (behave.fatal_code != 0) {
      (void)server_.send(incoming->peer, proto::TileError{request->request_id, "shard 3 is damaged", behave.fatal_code});
    } else if (spend(behave.errors)) {
      (void)server_.send(incoming->peer, proto::TileError{request->request_id, "busy", 0});
    } else {
      answer(server_, incoming->peer, *request);
      if (spend(behave.duplicate)) answer(server_, incoming->peer, *request);
    }
  }
}

void FakeLoader::answer(proto::Server& server, const std::string& peer, const proto::TileRequest& request) {
  FetchedTile tile = make_tile(function_, request.step, request.tile);
  tile.header.request_id = request.request_id;
  if (spend(behave.damage_header)) tile.header.sample_ids.pop_back();
  if (!request.shared_host.empty() && spend(behave.share_nothing)) {
    tile.header.shared = {1, 0, 77};
    return void(server.send(peer, tile.header));
  }
  (void)server.send(peer, tile.header);
  const bool cut = spend(behave.stop_in_middle);
  auto pixels = std::make_shared<std::vector<uint8_t>>(std::move(tile.pixels));
  if (spend(behave.damage_pixels)) (*pixels)[pixels->size() / 2] ^= 1;
  for (int32_t i = 0; i < (cut ? 1 : tile.header.frame_count); ++i) {
    const int64_t offset = i * kFrameBytes, size = std::min(kFrameBytes, int64_t(pixels->size()) - offset);
    (void)server.send(peer, proto::TileFrame{request.request_id, i, offset}, {pixels->data() + offset, size_t(size), pixels});
  }
}

TestTrainer::TestTrainer(const std::string& worker_id, int coordinator_port, TrainerOptions options) {
  options.worker_id = worker_id, options.device = "cpu", options.numerics_class = "test";
  listener_ = *collective::MeshListener::open("127.0.0.1");
  ControlLink::Options link;
  link.coordinator = "127.0.0.1:" + std::to_string(coordinator_port);
  link.hello = {worker_id, "here", {kVersion, "test", kProtocolVersion}, 1, "cpu", "test", "127.0.0.1:" + std::to_string(listener_->port()), 0, {}, -1};
  link_ = *ControlLink::start(link, abort_);
  trainer_ = std::make_unique<Trainer>(std::move(options), *link_, *listener_, abort_);
  thread_ = std::jthread([this] { exit_code_ = trainer_->run(); });
}

TestTrainer::~TestTrainer() {
  if (thread_.joinable()) thread_.join();
  trainer_.reset();  // its fetcher is the link's sink
  link_.reset();
}

FakeCoordinator::FakeCoordinator(const FunctionConfig& function, const OperationConfig& operation, const std::string& checkpoint_root, int port)
    : function_(function), operation_(operation), checkpoint_root_(checkpoint_root) {
  auto server = proto::Server::bind("127.0.0.1", port, {});
  TESSERA_CHECK(server.has_value(), server ? "" : server.error().message);
  server_ = std::make_unique<proto::Server>(std::move(*server));
}

bool FakeCoordinator::pump(const std::function<bool()>& condition, Millis deadline_ms) {
  for (const Millis end = monotonic_ms() + deadline_ms; !condition();) {
    if (monotonic_ms() > end) return false;
    if (const auto incoming = server_->receive(20)) handle(*incoming);
  }
  return true;
}

bool FakeCoordinator::await_ready(size_t count) {
  return pump([&] { return ready.size() >= count; });
}

void FakeCoordinator::welcome(const std::string& peer) {
  proto::TrainerWelcome w;
  w.run_id = "run", w.lineage = "lineage";
  w.function_yaml = print_function(function_), w.operation_yaml = print_operation(operation_);
  w.checkpoint_root = checkpoint_root_;
  w.sample_count = 1200, w.steps_per_epoch = 100, w.total_steps = function_.steps, w.warmup_steps = function_.warmup_steps;
  (void)server_->send(peer, w);
  (void)server_->send(peer, proto::ShardAssignment{1, loaders});
}

void FakeCoordinator::handle(const proto::Incoming& incoming) {
  const WorkerId& sender = incoming.envelope.sender;
  const proto::Payload& payload = incoming.envelope.payload;
  const bool known = peers_.contains(sender);
  if (const auto* hello = std::get_if<proto::TrainerHello>(&payload)) {
    hellos[sender] = *hello;
    peers_[sender] = incoming.peer, incarnations[sender] = incoming.envelope.incarnation;
    welcome(incoming.peer);
  } else if (!known) {
    (void)server_->send(incoming.peer, proto::Reintroduce{});
  } else if (std::holds_alternative<proto::TrainerReady>(payload)) {
    ++ready[sender];
  } else if (const auto* done = std::get_if<proto::StepDone>(&payload)) {
    ledger[done->step].push_back(*done);
    Step committed = -1;
    for (const auto& [step, reports] : ledger)
      if (step == committed + 1) committed = step;
    if (acknowledge) (void)server_->send(incoming.peer, proto::StepDoneAck{committed});
  } else if (const auto* s = std::get_if<proto::WorldStarted>(&payload)) {
    started[s->generation][sender] = *s;
  } else if (const auto* sealing = std::get_if<proto::Sealed>(&payload)) {
    sealed[sealing->generation][sender] = *sealing;
  } else if (const auto* fault = std::get_if<proto::WorldFault>(&payload)) {
    faults[sender] = *fault;
  } else if (const auto* goodbye = std::get_if<proto::Goodbye>(&payload)) {
    goodbyes[sender] = *goodbye;
  } else if (const auto* status = std::get_if<proto::TrainerStatus>(&payload)) {
    statuses[sender] = *status;
  } else if (const auto* file = std::get_if<proto::CheckpointFile>(&payload)) {
    if (drop_file && drop_file(*file)) ++dropped_files;
    else on_checkpoint_file(*file);
  } else if (const auto* failed = std::get_if<proto::CheckpointFailed>(&payload)) {
    checkpoint_failures.push_back(failed->reason);
  }
}

void FakeCoordinator::on_checkpoint_file(const proto::CheckpointFile& file) {
  auto& parts = attempts[file.attempt];
  parts[file.rank] = file;
  if (int32_t(parts.size()) < file.world_size) return;
  json manifest, files = json::array(), tensors = json::array();
  for (const auto& [rank, part] : parts) {
    const json content = json::parse(part.manifest_part);
    if (rank == 0) manifest = content["scalars"];
    for (const auto& t : content["tensors"]) tensors.push_back(t);
    files.push_back({{"file", part.file}, {"size_bytes", part.size_bytes}, {"hash", to_hex(part.hash)}});
  }
  manifest["files"] = files, manifest["tensors"] = tensors;
  const std::string attempt = checkpoint_root_ + "/" + file.attempt, folder = checkpoint_root_ + "/step-" + std::to_string(file.step);
  TESSERA_CHECK(write_file_atomic(attempt + "/manifest.json", seal_json(manifest)).has_value());
  std::filesystem::remove_all(folder);
  std::filesystem::rename(attempt, folder);
  checkpoints[file.step] = folder;
}

proto::WorldStart FakeCoordinator::start_world(const std::vector<WorkerId>& workers, proto::WorldStart start) {
  if (start.generation == Generation{}) start.generation = {1, next_number_};
  next_number_ = start.generation.number + 1;
  start.lineage = "lineage";
  for (size_t r = 0; r < workers.size(); ++r) start.members.push_back({workers[r], incarnations.at(workers[r]), Rank(r), hellos.at(workers[r]).mesh_address});
  for (const auto& worker : workers) send(worker, start);
  return start;
}

void FakeCoordinator::stop_world(const Generation& generation, const std::vector<WorkerId>& workers) {
  for (const auto& worker : workers) send(worker, proto::WorldStop{generation, "told by the test"});
}

void FakeCoordinator::send(const WorkerId& worker, const proto::Payload& payload) { (void)server_->send(peers_.at(worker), payload); }

void FakeCoordinator::shut_down(int exit_code) {
  for (const auto& [worker, peer] : peers_) (void)server_->send(peer, proto::Shutdown{"the test is over", exit_code});
}

bool FakeCoordinator::all_sealed(const Generation& generation, size_t count) const {
  const auto it = sealed.find(generation);
  return it != sealed.end() && it->second.size() >= count;
}

}  // namespace tessera::trainer::test
