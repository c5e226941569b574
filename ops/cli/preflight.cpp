#include "ops/cli/preflight.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/file.h"
#include "common/model_size.h"
#include "ops/cli/helpers.h"

namespace tessera::cli {
namespace {

constexpr int64_t kRoomForLogs = int64_t{64} << 20;

Status check_bad_samples(const Config& config, const Json& index) {
  const Json bad = index.value("bad", Json::array());
  if (bad.empty() || config.function.data.undecodable != "fail") return {};
  std::string list;
  for (size_t i = 0; i < bad.size() && i < 3; ++i) list += (i ? "; " : "") + bad[i].value("reason", bad[i].value("key", "?"));
  return fail(ErrorCode::kFixData, "[data] " + std::to_string(bad.size()) + " of the samples in " + config.operation.data_path + " cannot be read (" + list +
                                       "); repair or remove them, or set function.data.undecodable: grey");
}

}  // namespace

Result<DataFacts> index_data(const Config& config, const std::string& manifest_folder, SignalWatch& signals) {
  if (config.operation.data_path.empty())
    return fail(ErrorCode::kFixConfig, "[config] operation.data_path is empty; set it to a folder of images, a folder of tar shards, or scenes:10000 (--set operation.data_path=...)");
  const auto& remote = config.operation.remote;
  TESSERA_ASSIGN(const Json index, run_helper("tessera-data", {"index", config.operation.data_path, "--json", "--manifests", manifest_folder, "--cache-dir", remote.cache_dir, "--cache-bytes", std::to_string(remote.cache_bytes), "--retries", std::to_string(remote.retries), "--stall-seconds", std::to_string(remote.stall_seconds)}, signals));
  if (!index.contains("samples")) return fail(ErrorCode::kInternal, "tessera-data index said nothing of " + config.operation.data_path + "; is it of the same build as tessera?");
  DataFacts out{index.value("samples", int64_t{0}), index.value("shards", int64_t{0}), index.value("manifest_digest", "")};
  TESSERA_TRY(check_bad_samples(config, index));
  const std::string& wanted = config.function.data.manifest_digest;
  if (wanted != "auto" && wanted != out.manifest_digest)
    return fail(ErrorCode::kFixData, "[data] " + config.operation.data_path + " has manifest_digest " + out.manifest_digest + ", the configuration wants " + wanted +
                                         "; it is another dataset: correct operation.data_path or function.data.manifest_digest");
  return out;
}

Status check_port(const char* key, const std::string& bind, int64_t port) {
  const std::string where = bind + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(bind.c_str(), std::to_string(port).c_str(), &hints, &found); code != 0)
    return fail(ErrorCode::kFixConfig, "[config] " + std::string(key) + ".bind " + bind + " is no address of this host: " + gai_strerror(code));
  const int fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const bool bound = fd >= 0 && ::bind(fd, found->ai_addr, found->ai_addrlen) == 0 && ::listen(fd, 1) == 0;
  const int cause = errno;
  if (fd >= 0) ::close(fd);
  ::freeaddrinfo(found);
  if (bound) return {};
  if (cause == EADDRINUSE)
    return fail(ErrorCode::kIo, "port " + std::to_string(port) + " of " + bind + " is in use; set " + key + ".port to another one, or to 0 for any free one");
  return fail(ErrorCode::kIo, "cannot listen on " + where + ": " + std::strerror(cause) + "; set " + key + ".bind and " + key + ".port");
}

Status check_ports(const OperationConfig& operation) {
  TESSERA_TRY(check_port("operation.control", operation.control.bind, operation.control.port));
  return check_port("operation.http", operation.http.bind, operation.http.port);
}

Status check_disk(const Config& config, const std::string& run_dir) {
  const int64_t one = memory_estimate(config.function, {}).checkpoint;
  const int64_t count = config.operation.checkpoint.keep_last + 1;
  TESSERA_ASSIGN(const int64_t available, free_bytes(run_dir));
  if (available >= one * count + kRoomForLogs) return {};
  return fail(ErrorCode::kIo, "[disk] " + run_dir + " has " + human_bytes(available) + " free; " + std::to_string(count) + " checkpoints of " + human_bytes(one) +
                                  " each and the logs need " + human_bytes(one * count + kRoomForLogs) + "; free space, lower operation.checkpoint.keep_last, or set operation.run_dir");
}

int count_gpus(const std::string& folder) {
  int count = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    count += name.size() > 6 && name.starts_with("nvidia") && name.find_first_not_of("0123456789", 6) == std::string::npos;
  }
  return count;
}

Status check_devices(const OperationConfig& operation, int gpus) {
  if (operation.device != "cuda" || gpus >= operation.workers) return {};
  const std::string there = gpus == 0 ? "no NVIDIA GPU" : std::to_string(gpus) + " NVIDIA GPU" + (gpus == 1 ? "" : "s");
  return fail(ErrorCode::kFixConfig, "operation.device is cuda, but this machine has " + there + " (/dev/nvidia*) and operation.workers asks for " + std::to_string(operation.workers) +
                                         ": set operation.device: cpu" + (gpus > 0 ? ", or operation.workers: " + std::to_string(gpus) : ""));
}

Status check_programs() {
  for (const char* name : {"tessera-coordinator", "tessera-worker", "tessera-trainer", "tessera-loader", "tessera-data"}) TESSERA_TRY(helper_path(name));
  return {};
}

}  // namespace tessera::cli
