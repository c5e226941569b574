#include "ops/cli/run_folder.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "common/file.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;

std::vector<std::pair<fs::file_time_type, std::string>> runs_below(const std::string& runs_folder) {
  std::vector<std::pair<fs::file_time_type, std::string>> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(runs_folder, error)) {
    if (!holds_run(entry.path().string())) continue;
    const fs::path marker = entry.path() / "address.json";
    out.emplace_back(fs::last_write_time(fs::exists(marker) ? marker : entry.path(), error), entry.path().string());
  }
  std::sort(out.rbegin(), out.rend());
  return out;
}

Result<RunReference> of_folder(const std::string& run_dir) {
  RunReference out{run_dir, "", ""};
  if (!fs::exists(run_dir + "/address.json")) return out;
  TESSERA_ASSIGN(const RunAddress address, read_address(run_dir));
  out.url = address.http;
  out.token = address.token;
  return out;
}

std::string without_slash(std::string text) {
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

}  // namespace

Result<RunAddress> read_address(const std::string& run_dir) {
  const std::string path = run_dir + "/address.json";
  auto text = read_file(path, 1 << 20);
  if (!text) return fail(ErrorCode::kUnavailable, run_dir + " has no address.json: no coordinator has run there yet");
  const Json document = Json::parse(*text, nullptr, false);
  RunAddress out;
  try {
    out = {document.at("control"), document.at("http"), document.at("token"), document.at("run_id"), document.at("pid")};
  } catch (const Json::exception& e) {
    return fail(ErrorCode::kFixData, path + " is damaged (" + e.what() + "); start the run again with --resume, which writes a new one");
  }
  return out;
}

bool holds_run(const std::string& run_dir) {
  return fs::exists(run_dir + "/state.db") || fs::exists(run_dir + "/checkpoints") || fs::exists(run_dir + "/address.json");
}

bool process_exists(int64_t pid) { return pid > 0 && (::kill(pid_t(pid), 0) == 0 || errno == EPERM); }

Result<RunReference> find_run(const std::string& argument, const std::string& runs_folder) {
  std::string word = argument;
  if (word.empty())
    if (const char* variable = std::getenv("TESSERA_COORDINATOR")) word = variable;
  if (word.starts_with("http://")) return RunReference{"", without_slash(word), ""};
  if (word.ends_with("address.json") && fs::exists(word)) return of_folder(fs::path(word).parent_path().empty() ? "." : fs::path(word).parent_path().string());
  const auto runs = runs_below(runs_folder);
  if (word.empty()) {
    if (runs.empty()) return fail(ErrorCode::kUsage, "there is no run below " + runs_folder + "/; start one with `tessera up configs/quickstart.yaml`, or name a run's folder or http://HOST:PORT");
    return of_folder(runs.front().second);
  }
  for (const std::string& folder : {without_slash(word), runs_folder + "/" + word})
    if (holds_run(folder)) return of_folder(folder);
  std::vector<std::string> names;
  std::string list;
  for (const auto& [time, path] : runs) {
    names.push_back(fs::path(path).filename().string());
    if (names.size() <= 5) list += (list.empty() ? "" : ", ") + names.back();
  }
  const std::string near = nearest_word(word, names);
  return fail(ErrorCode::kUsage, "there is no run '" + word + "' (neither a folder of a run nor a name below " + runs_folder + "/)" +
                                     (near.empty() ? list.empty() ? "" : "; there are: " + list : "; did you mean " + near + "?"));
}

std::optional<Json> read_last_status(const std::string& run_dir) {
  auto text = read_file(run_dir + "/status.json", 64 << 20);
  if (!text) return std::nullopt;
  Json document = Json::parse(*text, nullptr, false);
  if (!document.is_object()) return std::nullopt;
  return document;
}

std::vector<Json> read_json_lines(const std::string& path) {
  std::vector<Json> out;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    Json row = Json::parse(line, nullptr, false);
    if (row.is_object()) out.push_back(std::move(row));
  }
  return out;
}

}  // namespace tessera::cli
