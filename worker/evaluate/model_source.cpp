#include "worker/evaluate/model_source.h"

#include <filesystem>

namespace tessera::evaluate {

namespace fs = std::filesystem;

Result<LoadedModel> load_model(const std::string& path, int64_t num_heads) {
  fs::path named = path;
  if (!named.has_filename()) named = named.parent_path();  // "run/" is "run"
  if (!fs::exists(named) && fs::exists(fs::path("runs") / named)) named = fs::path("runs") / named;
  auto opened = import::open_model(named.string(), num_heads);
  if (!opened) {
    Error error = std::move(opened).error();
    if (error.code == ErrorCode::kUsage) error.code = ErrorCode::kFixData;  // a model that is missing is data
    return tl::unexpected(std::move(error));
  }
  LoadedModel out{opened->path, "", std::move(opened->function), std::move(opened->state), opened->kind};
  const fs::path folder = fs::absolute(out.checkpoint), root = folder.parent_path();
  if (out.kind == import::ModelKind::kCheckpoint && root.filename() == "checkpoints")
    out.run_dir = fs::is_directory(named / "checkpoints") ? named.string() : root.parent_path().string();
  return out;
}

LoadedModel random_model(const LoadedModel& model) { return {"", "", model.function, model::State::initial(model.function), model.kind}; }

}  // namespace tessera::evaluate
