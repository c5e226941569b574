#include "data_loader/tool/bench_loader.h"

#include <algorithm>
#include <filesystem>
#include <cstring>
#include <map>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/process.h"
#include "common/process_usage.h"
#include "common/shared_memory.h"
#include "data_loader/server/tile_maker.h"
#include "proto/channel.h"
#include "proto/codec.h"

namespace tessera::data {
namespace {

namespace fs = std::filesystem;

// A folder that is gone with the scope.
struct Scratch {
  std::string path;
  ~Scratch() {
    std::error_code ignored;
    if (!path.empty()) fs::remove_all(path, ignored);
  }
};

Result<FunctionConfig> function_of(const BenchLoaderOptions& o) {
  const auto set = [](const char* key, int64_t value) { return std::string(key) + "=" + std::to_string(value); };
  TESSERA_ASSIGN(const Config config, parse_config("function: {masks: {mode: reference, min_keep: 0}}", "bench",
                                                   {set("function.model.patch_size", o.patch), set("function.model.image_size", o.size), set("function.batch.tile_size", o.tile), "function.batch.tiles=1"}));
  return config.function;
}

// A running loader and a connection to it.
class Pulling {
 public:
  static Result<std::unique_ptr<Pulling>> start(const OpenOptions& open, const BenchLoaderOptions& o, const FunctionConfig& function, const std::string& folder) {
    auto out = std::make_unique<Pulling>();
    TESSERA_TRY(write_file_atomic(folder + "/function.yaml", print_function(function)));
    SpawnOptions spawn;
    const std::string address_file = folder + "/address.json";
    spawn.command = {executable_folder() + "/tessera-loader", "--standalone", "--data", open.data_path, "--function", folder + "/function.yaml", "--address-file", address_file, "--threads", std::to_string(o.threads)};
    spawn.output_file = folder + "/log";
    TESSERA_ASSIGN(out->loader_, Child::spawn(spawn));
    std::string address;
    for (const Millis end = monotonic_ms() + 60000; address.empty();) {
      ChildExit exit;
      if (out->loader_.poll_exit(&exit)) return fail(ErrorCode::kUnavailable, "the loader ended: " + read_file(spawn.output_file).value_or(exit.cause));
      if (monotonic_ms() > end) return fail(ErrorCode::kUnavailable, "the loader did not get ready within a minute");
      if (const auto text = read_file(address_file)) {
        const auto document = nlohmann::json::parse(*text, nullptr, false);
        if (document.is_object()) address = document.value("data_address", "");
      }
      if (address.empty()) ::usleep(5000);
    }
    proto::ChannelOptions channel;
    channel.sender = "bench";
    TESSERA_ASSIGN(proto::Client client, proto::Client::connect(address, channel));
    out->client_ = std::make_unique<proto::Client>(std::move(client));
    return out;
  }

  // Tiles for `seconds`; images per second of each whole second, and bytes and images of all.
  struct Pulled {
    std::vector<double> rates;
    int64_t images = 0, bytes = 0;
    double seconds = 0;
    ProcessUsage before, after;
  };
  Result<Pulled> pull(double seconds, int64_t steps, const BenchLoaderOptions& o) {
    Pulled out;
    out.before = process_usage(loader_.pid()).value_or(ProcessUsage{});
    const double begin = monotonic_seconds();
    window_ = begin, window_images_ = 0;
    while (monotonic_seconds() < begin + seconds) {
      while (int64_t(open_.size()) < o.in_flight) {
        const Step step = next_step_++ % steps;
        const uint64_t id = next_id_++;
        TESSERA_TRY(client_->send(proto::TileRequest{id, step, 0, o.tile * o.size * o.size * 3, o.transport == "shm" ? host_identity() : ""}));
        open_[id] = {};
      }
      auto incoming = client_->receive(200);
      if (!incoming) {
        ChildExit exit;
        if (loader_.poll_exit(&exit)) return fail(ErrorCode::kUnavailable, "the loader ended: " + exit.cause);
        continue;
      }
      out.bytes += int64_t(proto::encode(incoming->envelope).size() + incoming->raw.size());
      if (const auto* error = std::get_if<proto::TileError>(&incoming->envelope.payload)) {
        if (error->reason.find("still being opened") == std::string::npos) return fail(ErrorCode::kFixData, error->reason, error->exit_code);
        open_.erase(error->request_id);
        ::usleep(20000);
      } else if (auto* header = std::get_if<proto::TileHeader>(&incoming->envelope.payload)) {
        const auto it = open_.find(header->request_id);
        if (it == open_.end()) continue;
        it->second.resize(size_t(header->pixel_bytes));
        const bool is_shared = header->shared.pid != 0;
        if (is_shared) {
          TESSERA_ASSIGN(const uint8_t* from, views_.get(header->shared.pid, header->shared.fd, header->shared.nonce, header->pixel_bytes));
          std::memcpy(it->second.data(), from, it->second.size());
          TESSERA_TRY(client_->send(proto::TileCancel{header->request_id}));
          out.bytes += header->pixel_bytes;
        }
        headers_[header->request_id] = std::move(*header);
        if (is_shared) TESSERA_TRY(arrived(it->first, o, &out));
      } else if (const auto* frame = std::get_if<proto::TileFrame>(&incoming->envelope.payload)) {
        const auto it = open_.find(frame->request_id);
        if (it == open_.end() || frame->offset + int64_t(incoming->raw.size()) > int64_t(it->second.size())) continue;
        std::memcpy(it->second.data() + frame->offset, incoming->raw.data(), incoming->raw.size());
        if (frame->offset + int64_t(incoming->raw.size()) < int64_t(it->second.size())) continue;
        TESSERA_TRY(arrived(frame->request_id, o, &out));
      }
    }
    out.seconds = monotonic_seconds() - begin;
    out.after = process_usage(loader_.pid()).value_or(ProcessUsage{});
    if (out.rates.empty()) out.rates.push_back(double(out.images) / out.seconds);
    return out;
  }

 private:
  Status arrived(uint64_t id, const BenchLoaderOptions& o, Pulled* out) {
    const std::vector<uint8_t>& pixels = open_[id];
    if (hash_bytes(pixels.data(), pixels.size()) != headers_[id].pixel_hash) return fail(ErrorCode::kRetry, "a tile was damaged on the way");
    open_.erase(id), headers_.erase(id);
    out->images += o.tile, window_images_ += o.tile;
    if (const double now = monotonic_seconds(); now - window_ >= 1) out->rates.push_back(double(window_images_) / (now - window_)), window_ = now, window_images_ = 0;
    return {};
  }

  double window_ = 0;
  int64_t window_images_ = 0;
  SharedViews views_;
  Child loader_;
  std::unique_ptr<proto::Client> client_;
  std::map<uint64_t, std::vector<uint8_t>> open_;
  std::map<uint64_t, proto::TileHeader> headers_;
  uint64_t next_id_ = 1;
  Step next_step_ = 0;
};

}  // namespace

Result<nlohmann::json> bench_loader(const OpenOptions& open, const BenchLoaderOptions& o) {
  if (o.transport != "tcp" && o.transport != "shm") return fail(ErrorCode::kUsage, "--transport " + o.transport + ": tcp or shm");
  TESSERA_ASSIGN(const FunctionConfig function, function_of(o));
  TESSERA_ASSIGN(const auto dataset, open_dataset(open));
  const int64_t samples = dataset->manifest->sample_count(), steps = samples / o.tile;
  if (steps < 1) return fail(ErrorCode::kUsage, open.data_path + " has " + std::to_string(samples) + " images, a tile " + std::to_string(o.tile) + "; use a smaller --tile");
  std::string form = (fs::temp_directory_path() / "tessera-bench-XXXXXX").string();
  if (::mkdtemp(form.data()) == nullptr) return fail(ErrorCode::kIo, "cannot make a temporary folder; set TMPDIR");
  const Scratch scratch{form};
  TESSERA_ASSIGN(const auto pulling, Pulling::start(open, o, function, form));
  TESSERA_ASSIGN(const auto warm, pulling->pull(o.seconds / 5, steps, o));
  TESSERA_ASSIGN(auto pulled, pulling->pull(o.seconds, steps, o));
  // One thread in this process, for the stages.
  TESSERA_ASSIGN(TileMaker maker, TileMaker::create(dataset, function));
  const double begin = monotonic_seconds();
  int64_t made = 0;
  for (Step step = 0; monotonic_seconds() < begin + o.seconds / 4; ++step, made += o.tile) TESSERA_TRY(maker.make(step % steps, 0));
  const double in_process = (monotonic_seconds() - begin) / double(made);
  const StageSeconds stages = maker.seconds();
  std::sort(pulled.rates.begin(), pulled.rates.end());
  const double cpu = (pulled.after.cpu_seconds - pulled.before.cpu_seconds) / double(std::max<int64_t>(1, pulled.images));
  const double n = double(made), known = (stages.read + stages.decode + stages.resize + stages.mask) / n;
  return nlohmann::json{{"schema", 1},
                        {"images_per_second", {{"min", pulled.rates.front()}, {"median", pulled.rates[pulled.rates.size() / 2]}, {"max", pulled.rates.back()}}},
                        {"images", pulled.images},
                        {"seconds", pulled.seconds},
                        {"cpu_seconds_per_image", cpu},
                        {"bytes_per_sample", double(pulled.bytes) / double(std::max<int64_t>(1, pulled.images))},
                        {"rss_bytes", pulled.after.resident_bytes},
                        {"split", {{"read", stages.read / n}, {"decode", stages.decode / n}, {"resize", stages.resize / n}, {"mask", stages.mask / n}, {"send", std::max(0.0, cpu - known)}}},
                        {"in_process_images_per_second", 1 / in_process},
                        {"settings", {{"data", open.data_path}, {"size", o.size}, {"tile", o.tile}, {"threads", o.threads}, {"transport", o.transport}, {"in_flight", o.in_flight}}}};
}

}  // namespace tessera::data
