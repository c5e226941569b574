#include "worker/evaluate/model_source.h"

#include <filesystem>

namespace tessera::evaluate {

namespace fs = std::filesystem;

Result<LoadedModel> load_model(const std::string& path) {
  LoadedModel out;
  fs::path folder = path;
  if (!fs::exists(folder) && fs::exists(fs::path("runs") / path)) folder = fs::path("runs") / path;
  if (fs::exists(folder / "checkpoints")) {
    out.run_dir = folder.string();
    fs::path newest;
    for (const auto& entry : fs::directory_iterator(folder / "checkpoints"))
      if (entry.path().filename().string().starts_with("step-") && fs::exists(entry.path() / "manifest.json") && entry.path() > newest) newest = entry.path();
    if (newest.empty()) return fail(ErrorCode::kFixData, path + ": the run has no checkpoint yet");
    folder = newest;
  } else if (folder.parent_path().filename() == "checkpoints") {
    out.run_dir = folder.parent_path().parent_path().string();
  }
  if (!fs::exists(folder / "manifest.json")) return fail(ErrorCode::kFixData, path + ": neither a run nor a checkpoint folder (no manifest.json)");
  out.checkpoint = folder.string();
  TESSERA_ASSIGN(const checkpoint::Manifest manifest, checkpoint::read_manifest(out.checkpoint));
  TESSERA_ASSIGN(out.function, parse_function(manifest.scalars.function_yaml));
  TESSERA_ASSIGN(out.state, checkpoint::read_checkpoint(out.checkpoint, out.function));
  return out;
}

}  // namespace tessera::evaluate
