#include "ops/cli/helpers.h"

#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <poll.h>
#include <unistd.h>

#include "common/file.h"

namespace tessera::cli {
namespace {

// A file that is gone with the scope.
struct ScratchFile {
  std::string path;
  ScratchFile() {
    std::string form = (std::filesystem::temp_directory_path() / "tessera-XXXXXX").string();
    const int fd = ::mkstemp(form.data());
    if (fd < 0) return;
    ::close(fd);
    path = form;
  }
  ~ScratchFile() {
    if (!path.empty()) ::unlink(path.c_str());
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
};

Json last_object(const std::string& path) {
  Json last;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] != '{') continue;
    Json document = Json::parse(line, nullptr, false);
    if (document.is_object()) last = std::move(document);
  }
  return last;
}

}  // namespace

Result<std::string> helper_path(const std::string& name) {
  const std::string path = executable_folder() + "/" + name;
  if (::access(path.c_str(), X_OK) == 0) return path;
  return fail(ErrorCode::kUnavailable, name + " is not beside tessera in " + executable_folder() + "; build it with: cmake --build --preset release --target " + name);
}

Error exec_helper(const std::string& name, const std::vector<std::string>& arguments) {
  const auto path = helper_path(name);
  if (!path) return path.error();
  std::vector<std::string> words{*path};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execv(path->c_str(), argv.data());
  return {ErrorCode::kUnavailable, "cannot run " + *path + ": " + std::strerror(errno)};
}

Result<Json> run_helper(const std::string& name, const std::vector<std::string>& arguments, SignalWatch& signals) {
  TESSERA_ASSIGN(const std::string path, helper_path(name));
  const ScratchFile output;
  if (output.path.empty()) return fail(ErrorCode::kIo, std::string("cannot make a temporary file: ") + std::strerror(errno) + "; set TMPDIR");
  SpawnOptions options;
  options.command = {path};
  options.command.insert(options.command.end(), arguments.begin(), arguments.end());
  options.output_file = output.path;
  options.own_session = true;
  TESSERA_ASSIGN(Child child, Child::spawn(options));
  const int before = signals.count();
  ChildExit exit;
  while (!child.poll_exit(&exit)) {
    pollfd wait[2] = {{child.descriptor(), POLLIN, 0}, {signals.descriptor(), POLLIN, 0}};
    poll(wait, 2, 500);
    if (signals.count() > before) {
      child.stop(2000);
      return fail(ErrorCode::kRetry, "interrupted while " + name + " was at work; nothing was started", exit_codes::kDrained);
    }
  }
  const Json document = last_object(output.path);
  if (exit.exit_code == 0) return document.is_object() ? document : Json::object();
  const std::string sentence = document.is_object() ? document.value("error", "") : "";
  const int code = exit.exit_code > 0 ? exit.exit_code : exit_codes::kBug;
  if (!sentence.empty()) return fail(ErrorCode::kInternal, sentence, code);
  if (document.is_object()) return document;  // a result with findings, such as `verify`
  return fail(ErrorCode::kInternal, name + " ended with " + exit.cause + "; its last lines:\n" + last_lines(output.path, 10), code);
}

std::string last_lines(const std::string& path, size_t count) {
  std::ifstream file(path);
  std::deque<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back("  " + line + "\n");
    if (lines.size() > count) lines.pop_front();
  }
  std::string out;
  for (const std::string& line : lines) out += line;
  if (!out.empty()) out.pop_back();
  return out;
}

}  // namespace tessera::cli
