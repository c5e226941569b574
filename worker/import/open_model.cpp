#include "worker/import/open_model.h"

#include <filesystem>

#include "worker/checkpoint/checkpoint.h"
#include "worker/import/hugging_face.h"
#include "worker/import/published.h"

namespace tessera::import {
namespace fs = std::filesystem;

Result<std::string> newest_checkpoint(const std::string& run) {
  const fs::path root = fs::is_directory(fs::path(run) / "checkpoints") ? fs::path(run) / "checkpoints" : fs::path(run);
  std::string newest;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && fs::exists(entry.path() / "manifest.json") && (newest.empty() || name > fs::path(newest).filename().string())) newest = entry.path().string();
  }
  if (newest.empty()) return fail(ErrorCode::kUsage, "[model] " + run + " holds no finished checkpoint (step-*/manifest.json)");
  return newest;
}

namespace {

Result<OpenedModel> open_checkpoint(const std::string& folder) {
  TESSERA_ASSIGN(const checkpoint::Manifest manifest, checkpoint::read_manifest(folder));
  OpenedModel out{ModelKind::kCheckpoint, folder, {}, {}};
  TESSERA_ASSIGN(out.function, parse_function(manifest.scalars.function_yaml));
  TESSERA_ASSIGN(out.state, checkpoint::read_checkpoint(folder, out.function));
  return out;
}

}  // namespace

Result<OpenedModel> open_model(const std::string& path, int64_t num_heads) {
  std::error_code error;
  if (!fs::exists(path, error)) return fail(ErrorCode::kUsage, "[model] " + path + " does not exist");
  if (!fs::is_directory(path, error)) {
    TESSERA_ASSIGN(Published published, read_published(path, {{}, num_heads, 1, false}));
    return OpenedModel{ModelKind::kPublished, path, std::move(published.function), std::move(published.state)};
  }
  if (fs::exists(fs::path(path) / "manifest.json")) return open_checkpoint(path);
  if (fs::exists(fs::path(path) / "config.json")) {
    TESSERA_ASSIGN(HuggingFaceModel folder, read_hugging_face(path));
    return OpenedModel{ModelKind::kHuggingFace, path, std::move(folder.function), std::move(folder.state)};
  }
  auto newest = newest_checkpoint(path);
  if (!newest)
    return fail(ErrorCode::kUsage, "[model] " + path + " is no checkpoint (manifest.json), no Hugging Face folder (config.json) and no run with a finished checkpoint");
  return open_checkpoint(*newest);
}

}  // namespace tessera::import
