#include "ops/cli/output.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <unistd.h>

namespace tessera::cli {
namespace {
bool open_line = false;
}

void print_json(const Json& fields) {
  Json out{{"schema", 1}};
  out.update(fields);
  std::printf("%s\n", out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

int report(const Error& error, Format format) {
  const int code = exit_code_of(error);
  say("tessera: " + error.message);
  if (format == Format::kJson) print_json({{"error", error.message}, {"exit_code", code}});
  return code;
}

void say(const std::string& line) {
  if (open_line) std::fputs("\r\033[K", stderr);
  open_line = false;
  std::fprintf(stderr, "%s\n", line.c_str());
  std::fflush(stderr);
}

bool stderr_is_terminal() {
  const char* term = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) == 1 && (term == nullptr || std::string(term) != "dumb");
}

void progress_line(const std::string& line) {
  std::fprintf(stderr, "\r%s\033[K", line.c_str());
  std::fflush(stderr);
  open_line = true;
}

std::string human_seconds(double seconds) {
  char text[64];
  const auto whole = static_cast<long long>(std::llround(seconds));
  if (!(seconds >= 0)) return "unknown";
  if (seconds < 9.95) std::snprintf(text, sizeof text, "%.1f s", seconds);
  else if (whole < 60) std::snprintf(text, sizeof text, "%lld s", whole);
  else if (whole < 3600) std::snprintf(text, sizeof text, "%lld min %02lld s", whole / 60, whole % 60);
  else if (whole < 48 * 3600) std::snprintf(text, sizeof text, "%lld h %02lld min", whole / 3600, whole % 3600 / 60);
  else std::snprintf(text, sizeof text, "%lld d %lld h", whole / 86400, whole % 86400 / 3600);
  return text;
}

std::string human_count(int64_t value) {
  std::string digits = std::to_string(value < 0 ? -value : value);
  for (int at = int(digits.size()) - 3; at > 0; at -= 3) digits.insert(size_t(at), 1, ',');
  if (value < 0) digits.insert(digits.begin(), '-');
  return digits;
}

std::string clock_time(double unix_seconds) {
  const auto seconds = std::time_t(unix_seconds);
  std::tm local{};
  localtime_r(&seconds, &local);
  char text[16];
  std::strftime(text, sizeof text, "%H:%M:%S", &local);
  return text;
}

}  // namespace tessera::cli
