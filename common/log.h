// Logging: text on stderr for people, one JSON object a line in logs/<role>-<name>.jsonl for machines. Every line has
// time, level, host, role, and, where known, worker, rank, generation and step. spdlog underneath.
//
//   log_init({.role = "trainer", .name = "node-a/0", .file = run_dir + "/logs/trainer-node-a-0.jsonl"});
//   log_context().step = 12;
//   log_info("checkpoint step {} written in {} ms", step, ms);
#pragma once

#include <atomic>
#include <spdlog/spdlog.h>
#include <string>

#include "common/result.h"

namespace tessera {

struct LogOptions {
  std::string role;
  std::string name;             // worker id, loader name; may be empty
  std::string file;             // JSON lines are appended here; empty: none. Its folder is made
  std::string format = "text";  // of stderr: text | json
  std::string level = "info";
};
// Call once in main, before any thread. Error: kIo when the file cannot be opened.
Status log_init(const LogOptions& options);

// What the lines carry; set by the thread that knows, read by all.
struct LogContext {
  std::atomic<int> rank{-1};
  std::atomic<int64_t> step{-1};
};
LogContext& log_context();

template <typename... Args>
void log_info(spdlog::format_string_t<Args...> text, Args&&... args) {
  spdlog::info(text, std::forward<Args>(args)...);
}
template <typename... Args>
void log_warning(spdlog::format_string_t<Args...> text, Args&&... args) {
  spdlog::warn(text, std::forward<Args>(args)...);
}
template <typename... Args>
void log_error(spdlog::format_string_t<Args...> text, Args&&... args) {
  spdlog::error(text, std::forward<Args>(args)...);
}
template <typename... Args>
void log_debug(spdlog::format_string_t<Args...> text, Args&&... args) {
  spdlog::debug(text, std::forward<Args>(args)...);
}

}  // namespace tessera
