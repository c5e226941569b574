#include "data_loader/server/loader.h"

#include <arpa/inet.h>
#include <filesystem>
#include <future>
#include <netdb.h>
#include <netinet/in.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "data_loader/decode/decode.h"

namespace tessera::data {
namespace {

constexpr Millis kStatusMs = 200, kHelloMs = 1000, kWelcomeMs = 120'000, kAfterErrorMs = 5000;
// Coordinators repeat the assignment every few seconds. One that is started again by hand may take minutes; trainers go on
// meanwhile and need their tiles.
constexpr Millis kAbandonedMs = 600'000;

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

// The address of this host that packets to `host` leave from; 127.0.0.1 for loopback. Sends nothing.
std::string local_address_towards(const std::string& host) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET, hints.ai_socktype = SOCK_DGRAM;
  if (::getaddrinfo(host.c_str(), "9", &hints, &found) != 0 || !found) return "127.0.0.1";
  std::string out = "127.0.0.1";
  const int probe = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in local{};
  socklen_t size = sizeof local;
  char text[INET_ADDRSTRLEN] = {};
  if (probe >= 0 && ::connect(probe, found->ai_addr, found->ai_addrlen) == 0 && ::getsockname(probe, reinterpret_cast<sockaddr*>(&local), &size) == 0 &&
      ::inet_ntop(AF_INET, &local.sin_addr, text, sizeof text))
    out = text;
  if (probe >= 0) ::close(probe);
  ::freeaddrinfo(found);
  return out;
}

bool readable(int descriptor) {
  pollfd wait{descriptor, POLLIN, 0};
  return descriptor >= 0 && ::poll(&wait, 1, 0) > 0;
}

// What opening a dataset for a run came to.
struct Opened {
  std::shared_ptr<const Dataset> dataset;
  proto::LoaderDataset report;
};

Opened open_for(const OpenOptions& options, const std::string& wanted_digest) {
  const double begin = monotonic_seconds();
  Opened out;
  const auto failed = [&](const Error& error) {
    out.report.error = error.message;
    out.report.exit_code = exit_code_of(error);
    return out;
  };
  auto dataset = open_dataset(options);
  if (!dataset) return failed(dataset.error());
  if (const Status same = check_digest(**dataset, wanted_digest); !same) return failed(same.error());
  out.dataset = std::move(*dataset);
  const Manifest& manifest = *out.dataset->manifest;
  out.report.manifest_digest = manifest.digest();
  out.report.sample_count = manifest.sample_count();
  out.report.shard_count = manifest.shard_count();
  out.report.decoder_fingerprint = decoder_fingerprint();
  log_info("dataset {}: {} samples in {} shards, manifest_digest {}, {} in {:.0f} ms{}", manifest.source(), manifest.sample_count(), manifest.shard_count(), to_hex(manifest.digest()),
           out.dataset->made_because.empty() ? "opened" : "indexed", (monotonic_seconds() - begin) * 1e3, out.dataset->made_because.empty() ? "" : " (" + out.dataset->made_because + ")");
  for (size_t i = 0; i < std::min<size_t>(5, manifest.bad().size()); ++i) log_warning("{} of {} bad samples: {}", i + 1, manifest.bad().size(), manifest.bad()[i].reason);
  return out;
}

RemoteOptions remote_options(const OperationConfig& operation, std::shared_ptr<std::atomic<bool>> closing) {
  RemoteOptions out;
  out.cache_dir = operation.remote.cache_dir;
  out.cache_bytes = operation.remote.cache_bytes;
  out.http = {int(operation.remote.retries), int(operation.remote.stall_seconds), std::move(closing)};
  return out;
}

// The control side of a loader with a coordinator.
class Loader {
 public:
  Loader(const LoaderOptions& options, std::string coordinator, proto::Client client)
      : options_(options), coordinator_(std::move(coordinator)), client_(std::move(client)) {
    client_.watch(options_.stop_fd);
  }
  ~Loader() { *closing_ = true; }  // a download under way must not hold up the end

  Result<int> run() {
    started_ = monotonic_ms();
    for (;;) {
      if (readable(options_.stop_fd)) return leave("told to stop", exit_codes::kDone);
      const Millis now = monotonic_ms();
      if (opening_.valid() && opening_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) report_dataset(opening_.get());
      if (failed_at_ && now - *failed_at_ > kAfterErrorMs) return leave(last_report_.error, last_report_.exit_code);
      if (!welcomed_ && now - started_ > kWelcomeMs)
        return fail(ErrorCode::kUnavailable, "[data_loader] the coordinator at " + coordinator_ + " has not answered for " + std::to_string(kWelcomeMs / 1000) + " s; is it running, and reachable from this host?");
      if (welcomed_ && now - heard_ > abandoned_ms())
        return fail(ErrorCode::kUnavailable, "[data_loader] nothing was heard of the coordinator at " + coordinator_ + " for " + std::to_string(abandoned_ms() / 1000) + " s; leaving, so that no loader outlives its run for ever");
      TESSERA_TRY(keep_in_touch(now));
      if (auto incoming = client_.receive(int(std::max<Millis>(1, std::min(next_status_, next_hello_) - now)))) {
        heard_ = monotonic_ms();
        TESSERA_ASSIGN(const std::optional<int> code, on_message(incoming->envelope.payload));
        if (code) return *code;
      }
    }
  }

 private:
  Millis abandoned_ms() const { return options_.abandoned_ms > 0 ? options_.abandoned_ms : kAbandonedMs; }

  Status keep_in_touch(Millis now) {
    if (!welcomed_ && now >= next_hello_) {
      TESSERA_TRY(ensure_port());
      (void)client_.send(proto::LoaderHello{options_.name, host_name(), {kVersion, build_commit(), kProtocolVersion}, getpid(), data_address_});
      next_hello_ = now + kHelloMs;
    }
    if (welcomed_) next_hello_ = now + kHelloMs;
    if (now >= next_status_) {
      if (welcomed_) (void)client_.send(status(now));
      next_status_ = now + kStatusMs;
    }
    return {};
  }

  // The port is bound before the first hello, which names it.
  Status ensure_port() {
    if (port_) return {};
    const std::string host = coordinator_.substr(0, coordinator_.rfind(':'));
    const std::string local = local_address_towards(host);
    DataPortOptions port;
    port.bind = !options_.bind.empty() ? options_.bind : local.starts_with("127.") ? "127.0.0.1" : "0.0.0.0";
    port.port = options_.port;
    port.name = options_.name;
    TESSERA_ASSIGN(port_, DataPort::start(port));
    const std::string reach = !options_.advertise.empty() ? options_.advertise : port.bind == "0.0.0.0" ? local : port.bind;
    data_address_ = "tcp://" + reach + ":" + std::to_string(port_->port());
    log_info("listening at {}, coordinator {}", data_address_, coordinator_);
    return {};
  }

  proto::LoaderStatus status(Millis now) {
    proto::LoaderStatus out = port_->status();
    if (now - rate_since_ >= 1000) {
      rate_ = double(out.images_total - rate_images_) * 1000.0 / double(now - rate_since_);
      rate_since_ = now, rate_images_ = out.images_total;
    }
    out.images_per_second = rate_;
    return out;
  }

  // A value: exit with it.
  Result<std::optional<int>> on_message(const proto::Payload& payload) {
    if (const auto* welcome = std::get_if<proto::LoaderWelcome>(&payload)) {
      TESSERA_TRY(on_welcome(*welcome));
    } else if (std::holds_alternative<proto::Reintroduce>(payload)) {
      welcomed_ = false, next_hello_ = 0, started_ = monotonic_ms();
    } else if (const auto* refused = std::get_if<proto::Refused>(&payload)) {
      return fail(ErrorCode::kRefused, "[data_loader] the coordinator refuses this loader: " + refused->reason, refused->exit_code ? refused->exit_code : exit_codes::kRefused);
    } else if (const auto* shutdown = std::get_if<proto::Shutdown>(&payload)) {
      log_info("the coordinator says stop: {}", shutdown->reason);
      return std::optional(shutdown->exit_code);
    } else if (const auto* assignment = std::get_if<proto::ShardAssignment>(&payload)) {
      for (const proto::LoaderShare& share : assignment->loaders)
        if (share.name == options_.name) log_debug("shard assignment {}: shards {} to {}", assignment->version, share.first_shard, share.last_shard);
    }
    return std::nullopt;
  }

  Status on_welcome(const proto::LoaderWelcome& welcome) {
    TESSERA_ASSIGN(function_, parse_function(welcome.function_yaml));
    welcomed_ = true;
    run_id_ = welcome.run_id;
    threads_ = options_.threads > 0 ? options_.threads : int(std::max<int64_t>(1, welcome.loader_threads));
    client_.set_run_id(welcome.run_id);
    OpenOptions open;
    open.data_path = options_.data_path.empty() ? welcome.data_path : options_.data_path;
    open.manifest_folder = welcome.manifest_folder.empty() ? options_.manifest_folder : welcome.manifest_folder;
    open.threads = std::max(threads_, 2);
    TESSERA_ASSIGN(const OperationConfig operation, parse_operation(welcome.operation_yaml));
    open.remote = remote_options(operation, closing_);
    if (opening_.valid()) opening_.wait();
    opening_ = std::async(std::launch::async, open_for, open, function_.data.manifest_digest);
    return {};
  }

  void report_dataset(Opened opened) {
    last_report_ = opened.report;
    (void)client_.send(opened.report);
    if (opened.dataset) return failed_at_.reset(), port_->serve(std::move(opened.dataset), function_, threads_, run_id_);
    log_error("{}", opened.report.error);
    failed_at_ = monotonic_ms();
  }

  Result<int> leave(const std::string& reason, int exit_code) {
    (void)client_.send(proto::Goodbye{reason, exit_code});
    return exit_code;
  }

  LoaderOptions options_;
  std::string coordinator_;
  proto::Client client_;
  std::unique_ptr<DataPort> port_;
  std::string data_address_, run_id_;
  int threads_ = 1;
  FunctionConfig function_;
  bool welcomed_ = false;
  Millis heard_ = 0;  // anything from the coordinator
  Millis started_ = 0, next_hello_ = 0, next_status_ = 0;
  std::shared_ptr<std::atomic<bool>> closing_ = std::make_shared<std::atomic<bool>>(false);
  std::future<Opened> opening_;
  proto::LoaderDataset last_report_;
  std::optional<Millis> failed_at_;  // when the dataset could not be opened: the coordinator's word is awaited for a while
  Millis rate_since_ = 0;
  int64_t rate_images_ = 0;
  double rate_ = 0;
};

}  // namespace

Result<std::string> coordinator_address(const std::string& text) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(text, error)) {
    if (text.ends_with(".json")) return fail(ErrorCode::kUnavailable, "[data_loader] there is no " + text + "; is the run's coordinator started?");
    return text;
  }
  TESSERA_ASSIGN(const std::string content, read_file(text));
  const nlohmann::json json = nlohmann::json::parse(content, nullptr, false);
  if (!json.is_object() || !json.contains("control") || !json["control"].is_string()) return fail(ErrorCode::kUnavailable, "[data_loader] " + text + " names no control address; give HOST:PORT");
  return json["control"].get<std::string>();
}

Result<int> run_loader(const LoaderOptions& given) {
  LoaderOptions options = given;
  if (options.name.empty()) options.name = "loader:" + host_name() + ":" + std::to_string(getpid());
  TESSERA_ASSIGN(std::string coordinator, coordinator_address(options.coordinator));
  proto::ChannelOptions channel;
  channel.sender = options.name;
  TESSERA_ASSIGN(proto::Client client, proto::Client::connect(coordinator, channel));
  return Loader(options, std::move(coordinator), std::move(client)).run();
}

Result<int> run_standalone(const LoaderOptions& options) {
  FunctionConfig function;
  if (!options.function_file.empty()) {
    TESSERA_ASSIGN(const std::string text, read_file(options.function_file));
    TESSERA_ASSIGN(function, parse_function(text));
  } else {
    function.data.interpolation = options.interpolation;
  }
  OpenOptions open;
  open.data_path = options.data_path;
  open.manifest_folder = options.manifest_folder;
  open.threads = std::max(options.threads, 2);
  open.remote = options.remote;
  const auto closing = open.remote.http.closing = std::make_shared<std::atomic<bool>>(false);
  TESSERA_ASSIGN(auto dataset, open_dataset(open));
  DataPortOptions port_options;
  port_options.bind = options.bind.empty() ? "127.0.0.1" : options.bind;
  port_options.port = options.port;
  port_options.name = options.name.empty() ? "loader:standalone" : options.name;
  TESSERA_ASSIGN(auto port, DataPort::start(port_options));
  port->serve(dataset, function, std::max(1, options.threads));
  const std::string address = "tcp://" + (options.advertise.empty() ? port_options.bind : options.advertise) + ":" + std::to_string(port->port());
  const nlohmann::ordered_json file{{"schema", 1}, {"data_address", address}, {"pid", getpid()}, {"samples", dataset->manifest->sample_count()}, {"manifest_digest", to_hex(dataset->manifest->digest())}};
  TESSERA_TRY(write_file_atomic(options.address_file, file.dump() + "\n"));
  pollfd wait{options.stop_fd, POLLIN, 0};
  while (::poll(&wait, 1, -1) <= 0) {
  }
  *closing = true;
  return exit_codes::kDone;
}

}  // namespace tessera::data
