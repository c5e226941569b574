// tessera checkpoint list | verify | digest
#include <cstdio>

#include "common/file.h"
#include "common/safetensors.h"
#include "ops/cli/checkpoint_files.h"
#include "ops/cli/commands.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

// A checkpoint folder, a folder that holds some, or a run as find_run knows it.
Result<std::vector<std::string>> folders_of(const std::string& run) {
  if (!run.empty())
    if (auto direct = checkpoint_folders(run)) return direct;
  TESSERA_ASSIGN(const RunReference reference, find_run(run));
  if (reference.run_dir.empty()) return fail(ErrorCode::kUsage, "checkpoints are files; name the run's folder instead of " + reference.url);
  return checkpoint_folders(reference.run_dir);
}

int show(const std::string& run, Depth depth, Format format) {
  const auto folders = folders_of(run);
  if (!folders) return report(folders.error(), format);
  Json list = Json::array();
  bool all_ok = true;
  for (const std::string& folder : *folders) {
    const CheckpointInfo info = inspect_checkpoint(folder, depth);
    all_ok = all_ok && info.ok;
    list.push_back(to_json(info));
    if (format == Format::kText)
      std::printf("step %-10lld %9s  %s  %s%s%s\n", static_cast<long long>(info.step), human_bytes(info.size_bytes).c_str(), info.state_digest.empty() ? "-" : info.state_digest.c_str(), info.path.c_str(),
                  depth == Depth::kHashes && info.ok ? "  verified" : "", info.ok ? "" : ("  BAD: " + info.reason).c_str());
  }
  if (format == Format::kJson) print_json({{"checkpoints", list}});
  return depth == Depth::kHashes && !all_ok ? exit_codes::kDataCorrupt : exit_codes::kDone;
}

}  // namespace

int checkpoint_list_command(const std::string& run, Format format) { return show(run, Depth::kManifest, format); }
int checkpoint_verify_command(const std::string& run, Format format) { return show(run, Depth::kHashes, format); }

int checkpoint_digest_command(const std::string& path, DigestKind kind, Format format) {
  const auto folders = folders_of(path);
  if (!folders) return report(folders.error(), format);
  const std::string& folder = folders->back();
  const auto files = checkpoint_files(folder);
  if (!files) return report(files.error(), format);
  std::string digest;
  if (kind == DigestKind::kSha256) {
    const auto value = canonical_sha256(*files);
    if (!value) return report(value.error(), format);
    digest = *value;
  } else {
    const auto value = compute_state_digest(folder);
    if (!value) return report(value.error(), format);
    digest = to_hex(*value);
  }
  if (format == Format::kJson) print_json({{"path", folder}, {kind == DigestKind::kSha256 ? "sha256" : "state_digest", digest}});
  else std::printf("%s  %s\n", digest.c_str(), folder.c_str());
  return exit_codes::kDone;
}

}  // namespace tessera::cli
