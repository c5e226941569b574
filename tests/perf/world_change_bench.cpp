// How long a change of world takes with many workers: a real tessera-coordinator, a loader and N cheap trainers over real
// connections, which answer at once and compute nothing. From the report that one trainer died until the last of the
// others holds its rank in the next generation. Connecting is reported apart.
//
//   world_change_bench WORKERS [CHANGES]      JSON on stdout
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <thread>

#include "common/clock.h"
#include "common/file.h"
#include "common/process.h"
#include "common/version.h"
#include "proto/channel.h"

namespace tessera {
namespace {

using nlohmann::json;

struct Trainer {
  std::string id;
  std::unique_ptr<proto::Client> client;
  Generation generation;
  std::vector<proto::Member> members;
  bool alive = true;
  Millis next_hello = 0, next_beat = 0;
  bool welcomed = false;
  double started_at = 0;
};

proto::BuildInfo build() { return {kVersion, build_commit(), kProtocolVersion}; }

std::unique_ptr<proto::Client> connect(const std::string& address, const std::string& sender) {
  proto::ChannelOptions options;
  options.sender = sender;
  auto client = proto::Client::connect(address, options);
  TESSERA_CHECK(client.has_value(), "cannot connect");
  return std::make_unique<proto::Client>(std::move(*client));
}

// Answers what came; false when nothing did.
bool answer(Trainer& t) {
  const auto incoming = t.client->receive(0);
  if (!incoming) return false;
  const auto& payload = incoming->envelope.payload;
  if (const auto* welcome = std::get_if<proto::TrainerWelcome>(&payload)) {
    t.welcomed = true;
    t.client->set_run_id(welcome->run_id);
    (void)t.client->send(proto::TrainerReady{});
  } else if (const auto* start = std::get_if<proto::WorldStart>(&payload)) {
    proto::WorldStart full = start->base ? proto::expand(*start, std::move(t.members)) : *start;
    t.generation = full.generation, t.members = std::move(full.members);
    t.started_at = monotonic_seconds();
    (void)t.client->send(proto::WorldStarted{t.generation, 0, {}});
  } else if (const auto* stop = std::get_if<proto::WorldStop>(&payload)) {
    (void)t.client->send(proto::Sealed{stop->generation, 0, false, {}, {}});
  }
  return true;
}

void keep_alive(Trainer& t, Millis now) {
  if (!t.welcomed && now >= t.next_hello) {
    t.next_hello = now + 1000;
    (void)t.client->send(proto::TrainerHello{t.id, "host", build(), 1, "cpu", "class", "127.0.0.1:1", 0, t.generation, 0});
  }
  if (t.welcomed && now >= t.next_beat) {
    t.next_beat = now + 200;
    proto::TrainerStatus status;
    status.generation = t.generation;
    status.phase = t.members.empty() ? proto::Phase::kReady : proto::Phase::kData;
    (void)t.client->send(status);
  }
}

class Bench {
 public:
  Bench(int workers, int changes) : changes_(changes), trainers_(size_t(workers)) {}

  int run() {
    start_coordinator();
    const double begin = monotonic_seconds();
    daemon_ = connect(control_, "daemon:many");
    loader_ = connect(control_, "loader");
    (void)loader_->send(proto::LoaderHello{"loader", "host", build(), 1, "tcp://127.0.0.1:1"});
    proto::DaemonHello hello{"host", build(), 1, {}};
    for (size_t i = 0; i < trainers_.size(); ++i) {
      char id[32];
      std::snprintf(id, sizeof id, "many/%06zu", i);
      trainers_[i].id = id;
      hello.slots.push_back({id, "cpu"});
    }
    (void)daemon_->send(hello);
    for (auto& trainer : trainers_) trainer.client = connect(control_, trainer.id);
    pump([&] { return holds_rank(trainers_.size()); });
    const double connected = monotonic_seconds() - begin;
    std::vector<double> seconds;
    for (int i = 0; i < changes_; ++i) {
      quiet(0.5);
      seconds.push_back(change(size_t(i)));
    }
    std::sort(seconds.begin(), seconds.end());
    std::printf("%s\n", json{{"schema", 1}, {"workers", trainers_.size()}, {"changes", changes_}, {"connect_seconds", connected}, {"change_seconds", {{"min", seconds.front()}, {"median", seconds[seconds.size() / 2]}, {"max", seconds.back()}}}}.dump().c_str());
    return 0;
  }

 private:
  void start_coordinator() {
    folder_ = "/tmp/tessera-world-change-" + std::to_string(::getpid());
    std::filesystem::create_directories(folder_);
    const std::string config = folder_ + "/many.yaml";
    TESSERA_CHECK(write_file_atomic(config, "function:\n  model: {name: custom, patch_size: 8, image_size: 64, embed_dim: 16, depth: 1, num_heads: 2}\n  predictor: {embed_dim: 16, depth: 1}\n"
                                            "  masks: {min_keep: 4}\n  batch: {tile_size: 1, tiles: 4}\n  steps: 1000\noperation:\n  data_path: scenes:400:64\n  min_workers: " + std::to_string(trainers_.size() - size_t(changes_)) + "\n").has_value(), "config");
    SpawnOptions spawn;
    spawn.command = {executable_folder() + "/../bin/tessera-coordinator", config, "--run-dir", folder_ + "/run"};
    spawn.output_file = folder_ + "/log";
    coordinator_ = Child::spawn(spawn).value();
    for (const Millis end = monotonic_ms() + 30000; monotonic_ms() < end; poll(nullptr, 0, 10))
      if (const auto text = read_file(folder_ + "/run/address.json")) {
        control_ = json::parse(*text)["control"].get<std::string>();
        return;
      }
    TESSERA_CHECK(false, "no address");
  }
  bool holds_rank(size_t count) const {
    for (const auto& t : trainers_)
      if (t.alive && t.members.size() != count) return false;
    return true;
  }
  void pump(const std::function<bool()>& condition) {
    for (const double end = monotonic_seconds() + 300; !condition();) {
      TESSERA_CHECK(monotonic_seconds() < end, "the world did not come about; see " + folder_ + "/log");
      const Millis now = monotonic_ms();
      bool any = false;
      for (auto& t : trainers_) {
        if (!t.alive) continue;
        while (answer(t)) any = true;
        keep_alive(t, now);
      }
      while (daemon_->receive(0)) any = true;
      while (auto incoming = loader_->receive(0)) {
        any = true;
        if (std::holds_alternative<proto::LoaderWelcome>(incoming->envelope.payload)) (void)loader_->send(proto::LoaderDataset{{1, 2}, 400, 4, "f", "", 0});
      }
      if (now >= next_service_) {
        next_service_ = now + 200;
        (void)daemon_->send(proto::DaemonStatus{}), (void)loader_->send(proto::LoaderStatus{});
      }
      if (!any) poll(nullptr, 0, 1);
    }
  }
  void quiet(double seconds) {
    const double until = monotonic_seconds() + seconds;
    pump([&] { return monotonic_seconds() > until; });
  }
  double change(size_t victim) {
    trainers_[victim].alive = false;
    const size_t left = trainers_.size() - victim - 1;
    const double begin = monotonic_seconds();
    (void)daemon_->send(proto::TrainerExited{trainers_[victim].id, trainers_[victim].client->incarnation(), -1, 9, "killed by SIGKILL", false});
    pump([&] { return holds_rank(left); });
    double last = 0;
    for (const auto& t : trainers_)
      if (t.alive) last = std::max(last, t.started_at);
    return last - begin;
  }

  const int changes_;
  std::vector<Trainer> trainers_;
  std::string folder_, control_;
  Child coordinator_;
  std::unique_ptr<proto::Client> daemon_, loader_;
  Millis next_service_ = 0;
};

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  const int workers = argc > 1 ? std::atoi(argv[1]) : 1000, changes = argc > 2 ? std::atoi(argv[2]) : 5;
  if (workers <= changes || changes < 1) return std::fprintf(stderr, "world_change_bench WORKERS [CHANGES], more workers than changes\n"), 64;
  return tessera::Bench(workers, changes).run();
}
