#include "worker/evaluate/samples.h"

#include <ATen/ops/empty.h>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"

namespace tessera::evaluate {
namespace {

constexpr size_t kBatch = 32;  // images a request

std::string last_line(const std::string& path) {
  const auto text = read_file(path);
  if (!text) return "";
  std::string out;
  for (size_t at = 0; at < text->size();) {
    const size_t end = std::min(text->find('\n', at), text->size());
    if (end > at) out = text->substr(at, end - at);
    at = end + 1;
  }
  return out;
}

}  // namespace

Result<std::unique_ptr<SampleSource>> SampleSource::open(const std::string& data_path, int threads, const std::vector<std::string>& extra) {
  std::unique_ptr<SampleSource> source(new SampleSource());
  std::string pattern = (std::filesystem::temp_directory_path() / "tessera-samples-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) return fail(ErrorCode::kIo, "cannot make a folder in " + std::filesystem::temp_directory_path().string());
  source->folder_ = pattern;
  source->log_ = pattern + "/loader.log";
  SpawnOptions spawn;
  spawn.command = {executable_folder() + "/tessera-loader", "--standalone", "--data", data_path, "--address-file", pattern + "/address.json", "--threads", std::to_string(threads)};
  spawn.command.insert(spawn.command.end(), extra.begin(), extra.end());
  spawn.output_file = source->log_;
  TESSERA_ASSIGN(source->loader_, Child::spawn(spawn));
  const Millis end = monotonic_ms() + 600000;  // indexing a large folder for the first time takes a while
  std::string address;
  while (address.empty()) {
    ChildExit exit;
    if (source->loader_.poll_exit(&exit)) return fail(ErrorCode::kFixData, "the loader for " + data_path + " ended: " + last_line(source->log_), exit.exit_code > 0 ? exit.exit_code : 0);
    if (monotonic_ms() > end) return fail(ErrorCode::kUnavailable, "the loader for " + data_path + " did not get ready: " + last_line(source->log_));
    if (const auto text = read_file(pattern + "/address.json")) {
      const auto doc = nlohmann::json::parse(*text, nullptr, false);
      if (doc.is_object() && doc.contains("data_address")) address = doc["data_address"].get<std::string>();
    }
    if (address.empty()) ::usleep(5000);
  }
  proto::ChannelOptions options;
  options.sender = "tessera-model";
  options.max_message_bytes = int64_t{1} << 30;
  TESSERA_ASSIGN(proto::Client client, proto::Client::connect(address, options));
  source->client_ = std::make_unique<proto::Client>(std::move(client));
  while (true) {
    TESSERA_TRY(source->client_->send(proto::DatasetRequest{}));
    auto answer = source->wait(5000);
    if (answer) {
      if (auto* info = std::get_if<proto::DatasetInfo>(&answer->envelope.payload)) {
        source->info_ = std::move(*info);
        return source;
      }
    } else if (monotonic_ms() > end || !source->loader_.running()) {
      return tl::unexpected(answer.error());
    }
  }
}

SampleSource::~SampleSource() {
  if (loader_.running()) loader_.stop(1000);
  std::error_code error;
  std::filesystem::remove_all(folder_, error);
}

Result<proto::Incoming> SampleSource::wait(Millis timeout_ms) {
  const Millis end = monotonic_ms() + timeout_ms;
  for (;;) {
    if (auto incoming = client_->receive(50)) {
      if (const auto* error = std::get_if<proto::TileError>(&incoming->envelope.payload)) {
        if (error->exit_code == 0 && monotonic_ms() < end && error->reason.find("still being opened") != std::string::npos) {
          ::usleep(20000);
          return fail(ErrorCode::kRetry, error->reason);
        }
        return fail(ErrorCode::kFixData, error->reason, error->exit_code);
      }
      return std::move(*incoming);
    }
    ChildExit exit;
    if (loader_.poll_exit(&exit)) return fail(ErrorCode::kFixData, "the loader ended (" + exit.cause + "): " + last_line(log_), exit.exit_code > 0 ? exit.exit_code : 0);
    if (monotonic_ms() > end) return fail(ErrorCode::kUnavailable, "the loader does not answer: " + last_line(log_));
  }
}

Result<Samples> SampleSource::read(const std::vector<SampleId>& ids, int size) {
  Samples out;
  const int64_t image_bytes = int64_t{size} * size * 3;
  out.ids = ids;
  out.keys.resize(ids.size());
  out.pixels = at::empty({int64_t(ids.size()), size, size, 3}, at::kByte);
  uint8_t* pixels = out.pixels.mutable_data_ptr<uint8_t>();
  std::map<uint64_t, size_t> open;  // request -> first image
  size_t asked = 0, done = 0;
  while (done < ids.size()) {
    while (open.size() < 4 && asked < ids.size()) {
      const size_t count = std::min(kBatch, ids.size() - asked);
      proto::SampleRequest request{next_id_++, {ids.begin() + int64_t(asked), ids.begin() + int64_t(asked + count)}, size};
      TESSERA_TRY(client_->send(request));
      open[request.request_id] = asked;
      asked += count;
    }
    TESSERA_ASSIGN(proto::Incoming incoming, wait(60000));
    auto* tile = std::get_if<proto::SampleTile>(&incoming.envelope.payload);
    if (tile == nullptr || !open.contains(tile->request_id)) continue;
    const size_t first = open[tile->request_id], count = tile->sample_ids.size();
    if (int64_t(incoming.raw.size()) != int64_t(count) * image_bytes || hash_bytes(incoming.raw) != tile->pixel_hash)
      return fail(ErrorCode::kRetry, "the loader's answer was damaged on the way");
    std::memcpy(pixels + int64_t(first) * image_bytes, incoming.raw.data(), incoming.raw.size());
    for (size_t i = 0; i < count; ++i) out.keys[first + i] = tile->keys[i];
    for (size_t l = 0; l < tile->label_names.size(); ++l) {
      auto& list = out.labels[tile->label_names[l]];
      list.resize(ids.size(), std::nan(""));
      for (size_t i = 0; i < count; ++i) list[first + i] = tile->labels[i * tile->label_names.size() + l];
    }
    open.erase(tile->request_id);
    done += count;
  }
  return out;
}

Result<std::pair<proto::TileHeader, std::vector<uint8_t>>> SampleSource::tile(Step step, TileIndex tile, int64_t bytes) {
  std::optional<proto::TileHeader> header;
  std::vector<uint8_t> pixels;
  for (int attempt = 0; attempt < 200; ++attempt) {
    TESSERA_TRY(client_->send(proto::TileRequest{next_id_++, step, tile, bytes, ""}));
    for (;;) {
      auto incoming = wait(60000);
      if (!incoming) {
        if (incoming.error().code == ErrorCode::kRetry) break;
        return tl::unexpected(incoming.error());
      }
      if (auto* h = std::get_if<proto::TileHeader>(&incoming->envelope.payload)) {
        header = std::move(*h);
        pixels.resize(size_t(header->pixel_bytes));
      } else if (const auto* frame = std::get_if<proto::TileFrame>(&incoming->envelope.payload); frame && header) {
        if (frame->offset < 0 || frame->offset + int64_t(incoming->raw.size()) > int64_t(pixels.size())) return fail(ErrorCode::kFixData, "a frame does not fit its tile");
        std::memcpy(pixels.data() + frame->offset, incoming->raw.data(), incoming->raw.size());
        if (frame->offset + int64_t(incoming->raw.size()) == int64_t(pixels.size())) return std::pair{std::move(*header), std::move(pixels)};
      }
    }
  }
  return fail(ErrorCode::kUnavailable, "the loader did not get ready");
}

}  // namespace tessera::evaluate
