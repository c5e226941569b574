#include "coordinator/publish.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "common/crash_point.h"
#include "common/file.h"
#include "common/sealed_json.h"

namespace tessera::coordinator {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string step_folder(Step step) {
  char text[40];
  std::snprintf(text, sizeof text, "step-%012lld", static_cast<long long>(step));
  return text;
}

Result<json> join_parts(const PublishCheckpoint& effect) {
  json manifest, files = json::array(), tensors = json::array();
  for (const auto& file : effect.files) {
    const json part = json::parse(file.manifest_part, nullptr, false);
    if (!part.is_object() || !part.contains("tensors")) return fail(ErrorCode::kInternal, "rank " + std::to_string(file.rank) + " sent no manifest part");
    if (part.contains("scalars")) manifest = part["scalars"];
    for (const auto& tensor : part["tensors"]) tensors.push_back(tensor);
    files.push_back({{"file", file.file}, {"size_bytes", file.size_bytes}, {"hash", to_hex(file.hash)}});
  }
  if (!manifest.is_object()) return fail(ErrorCode::kInternal, "no rank sent the manifest's scalars");
  manifest["batch_digest"] = to_hex(effect.batch_chain);
  manifest["files"] = files;
  manifest["tensors"] = tensors;
  return manifest;
}

std::vector<uint64_t> terms_in(const std::string& root) {
  std::vector<uint64_t> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".term-")) out.push_back(std::strtoull(name.c_str() + 6, nullptr, 10));
  }
  return out;
}

}  // namespace

CheckpointEntry publish(const std::string& root, uint64_t term, const PublishCheckpoint& effect) {
  CheckpointEntry entry;
  entry.step = effect.step;
  entry.path = root + "/" + step_folder(effect.step);
  const auto failed = [&](const std::string& why) {
    entry.ok = false;
    entry.reason = why;
    return entry;
  };
  auto manifest = join_parts(effect);
  if (!manifest) return failed(manifest.error().message);
  auto digest = state_digest_from_hex(manifest->value("state_digest", ""));
  if (!digest) return failed(digest.error().message);
  entry.state_digest = *digest;
  for (const auto& file : effect.files) entry.size_bytes += file.size_bytes;
  const std::string attempt = root + "/" + effect.attempt;
  if (auto done = write_file_atomic(attempt + "/manifest.json", seal_json(*manifest)); !done) return failed(done.error().message);
  crash_point("publish.manifest_written");
  if (!claim_is_newest(root, term)) return failed("a newer coordinator has taken over");
  std::error_code error;
  if (fs::exists(entry.path)) {  // a damaged one of the same step: out of the way first
    fs::remove_all(entry.path + ".replaced", error);
    fs::rename(entry.path, entry.path + ".replaced", error);
  }
  fs::rename(attempt, entry.path, error);
  if (error) return failed("cannot rename " + attempt + ": " + error.message());
  crash_point("publish.renamed");
  if (auto done = fsync_folder(root); !done) return failed(done.error().message);
  fs::remove_all(entry.path + ".replaced", error);
  return entry;
}

std::map<Step, CheckpointEntry> list_checkpoints(const std::string& root) {
  std::map<Step, CheckpointEntry> out;
  std::error_code error;
  for (const auto& folder : fs::directory_iterator(root, error)) {
    const std::string name = folder.path().filename().string();
    if (!name.starts_with("step-") || name.ends_with(".replaced")) continue;
    CheckpointEntry entry;
    entry.step = std::strtoll(name.c_str() + 5, nullptr, 10);
    entry.path = folder.path().string();
    const auto text = read_file(entry.path + "/manifest.json");
    const auto opened = text ? open_sealed_json(*text, entry.path + "/manifest.json") : Result<json>(fail(ErrorCode::kFixData, "its manifest is missing"));
    const json manifest = opened ? *opened : json::object();
    const auto digest = state_digest_from_hex(manifest.value("state_digest", ""));
    if (!opened || !digest) {
      entry.ok = false, entry.reason = opened ? "its manifest has no state digest" : opened.error().message;
    } else {
      entry.state_digest = *digest;
      for (const auto& file : manifest.value("files", json::array())) entry.size_bytes += file.value("size_bytes", int64_t{0});
    }
    out[entry.step] = entry;
  }
  return out;
}

void remove_attempts(const std::string& root) {
  std::error_code error;
  std::vector<fs::path> stale;
  for (const auto& folder : fs::directory_iterator(root, error))
    if (const std::string name = folder.path().filename().string(); name.starts_with(".attempt-") || name.ends_with(".replaced") || (name.starts_with("step-") && !fs::exists(folder.path() / "manifest.json")))
      stale.push_back(folder.path());  // the last: a removal that was cut off, for the manifest goes first
  for (const auto& path : stale) fs::remove_all(path, error);
}

void remove_checkpoint(const std::string& path) {
  // The manifest goes first: a half-removed checkpoint must not look whole.
  std::error_code error;
  fs::remove(path + "/manifest.json", error);
  crash_point("publish.removed");
  fs::remove_all(path, error);
}

namespace {

std::string shape_text(const FunctionConfig& f) {
  const auto numbers = [](int64_t embed_dim, int64_t depth, int64_t heads) { return std::to_string(embed_dim) + " x " + std::to_string(depth) + " with " + std::to_string(heads) + " heads"; };
  return "an encoder of " + numbers(f.model.embed_dim, f.model.depth, f.model.num_heads) + ", patch " + std::to_string(f.model.patch_size) + " at " + std::to_string(f.model.image_size) +
         " px, and a predictor of " + numbers(f.predictor.embed_dim, f.predictor.depth, f.predictor.num_heads);
}

}  // namespace

Result<Step> copy_root_checkpoint(const std::string& folder, const FunctionConfig& function, const std::string& root) {
  const auto text = read_file(folder + "/manifest.json");
  if (!text) return fail(ErrorCode::kUsage, "[coordinator] " + folder + " is no checkpoint folder (no manifest.json); name step-N of a run or what `tessera import` wrote");
  TESSERA_ASSIGN(const json manifest, open_sealed_json(*text, "[coordinator] " + folder + "/manifest.json"));
  if (!manifest.contains("step") || !manifest["step"].is_number_integer() || !manifest.contains("function") || !manifest["function"].is_string())
    return fail(ErrorCode::kFixData, "[coordinator] " + folder + "/manifest.json is damaged");
  TESSERA_ASSIGN(const FunctionConfig theirs, parse_function(manifest["function"].get<std::string>()));
  if (shape_text(theirs) != shape_text(function))
    return fail(ErrorCode::kFixConfig, "[coordinator] " + folder + " holds " + shape_text(theirs) + "; the configuration has " + shape_text(function) + "; set function.model and function.predictor to the checkpoint's");
  const Step step = manifest["step"];
  const std::string copying = root + "/.attempt-root", place = root + "/" + step_folder(step);
  std::error_code error;
  fs::remove_all(copying, error);
  fs::copy(folder, copying, fs::copy_options::recursive, error);
  if (!error) fs::rename(copying, place, error);
  if (error) {
    const std::string why = error.message();
    fs::remove_all(copying, error);
    return fail(ErrorCode::kIo, "[coordinator] cannot copy " + folder + " to " + place + ": " + why);
  }
  TESSERA_TRY(fsync_folder(root));
  return step;
}

Result<uint64_t> claim_term(const std::string& root, uint64_t known) {
  TESSERA_TRY(make_folders(root));
  for (int attempt = 0; attempt < 1000; ++attempt) {
    uint64_t term = known;
    for (const uint64_t t : terms_in(root)) term = std::max(term, t);
    ++term;
    const std::string path = root + "/.term-" + std::to_string(term);
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 && errno == EEXIST) continue;
    if (fd < 0) return fail(ErrorCode::kIo, "cannot claim a term in " + root + ": " + std::strerror(errno));
    ::fsync(fd);
    ::close(fd);
    TESSERA_TRY(fsync_folder(root));
    return term;
  }
  return fail(ErrorCode::kRetry, "cannot claim a term in " + root + ": others claim all the time");
}

bool claim_is_newest(const std::string& root, uint64_t term) {
  const auto terms = terms_in(root);
  return std::all_of(terms.begin(), terms.end(), [&](uint64_t t) { return t <= term; });
}

}  // namespace tessera::coordinator
