#include "common/log.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <sys/utsname.h>

namespace tessera {
namespace {

struct Identity {
  std::string host, role, name;
};
Identity& identity() {
  static Identity value;
  return value;
}

class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    nlohmann::ordered_json line;
    const auto since = message.time.time_since_epoch();
    line["time"] = double(std::chrono::duration_cast<std::chrono::milliseconds>(since).count()) / 1000.0;
    const auto level = spdlog::level::to_string_view(message.level);
    line["level"] = std::string(level.data(), level.size());
    line["host"] = identity().host;
    line["role"] = identity().role;
    if (!identity().name.empty()) line["worker"] = identity().name;
    if (const int rank = log_context().rank; rank >= 0) line["rank"] = rank;
    if (const int64_t step = log_context().step; step >= 0) line["step"] = step;
    line["message"] = std::string(message.payload.data(), message.payload.size());
    const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

// " rank 1 step 12" after the name, when known.
class WhereFlag : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg&, const std::tm&, spdlog::memory_buf_t& out) override {
    std::string text;
    if (!identity().name.empty()) text += " " + identity().name;
    if (const int rank = log_context().rank; rank >= 0) text += " rank " + std::to_string(rank);
    if (const int64_t step = log_context().step; step >= 0) text += " step " + std::to_string(step);
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override { return std::make_unique<WhereFlag>(); }
};

}  // namespace

LogContext& log_context() {
  static LogContext context;
  return context;
}

Status log_init(const LogOptions& options) {
  utsname host{};
  uname(&host);
  identity() = {host.nodename, options.role, options.name};
  std::vector<spdlog::sink_ptr> sinks;
  auto console = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  if (options.format == "json") {
    console->set_formatter(std::make_unique<JsonFormatter>());
  } else {
    auto formatter = std::make_unique<spdlog::pattern_formatter>();
    formatter->add_flag<WhereFlag>('*').set_pattern("%H:%M:%S.%e %^%l%$ " + options.role + "%*: %v");
    console->set_formatter(std::move(formatter));
  }
  sinks.push_back(console);
  if (!options.file.empty()) {
    try {
      std::filesystem::create_directories(std::filesystem::path(options.file).parent_path());
      auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
      file->set_formatter(std::make_unique<JsonFormatter>());
      sinks.push_back(file);
    } catch (const std::exception& e) {
      return fail(ErrorCode::kIo, "[log] cannot write " + options.file + ": " + e.what());
    }
  }
  auto logger = std::make_shared<spdlog::logger>("tessera", sinks.begin(), sinks.end());
  logger->set_level(spdlog::level::from_str(options.level == "warning" ? "warn" : options.level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);
  return {};
}

}  // namespace tessera
