// Checkpoints as files: listing, verification against the manifest's hashes and digest, digests. No LibTorch.
#pragma once

#include <string>
#include <vector>

#include "common/digest.h"
#include "common/ids.h"
#include "common/result.h"
#include "ops/cli/output.h"

namespace tessera::cli {

struct CheckpointInfo {
  Step step = 0;
  std::string path;
  int64_t size_bytes = 0;
  std::string state_digest;  // as the manifest says
  std::string batch_digest;
  bool ok = true;
  std::string reason;  // why not ok
};
Json to_json(const CheckpointInfo& info);

enum class Depth {
  kManifest,  // the manifest, and that its files exist with their sizes
  kHashes,    // reads every byte: file hashes, tensors listed and present, state digest computed again
};
CheckpointInfo inspect_checkpoint(const std::string& folder, Depth depth);

// Checkpoint folders below `path`: itself when it holds a manifest, else path/checkpoints/step-*, else path/step-*. By step.
// Error: kUsage when there is none.
Result<std::vector<std::string>> checkpoint_folders(const std::string& path);
// The newest checkpoint of a run that is ok by its manifest; step -1 when there is none.
CheckpointInfo newest_checkpoint(const std::string& run_dir);

// Files of a checkpoint, as its manifest lists them. Errors: kFixData, kIo.
Result<std::vector<std::string>> checkpoint_files(const std::string& folder);

// INTERFACES "state_digest", computed from the files: every tensor but the frozen position tables, and Adam's step count.
Result<StateDigest> compute_state_digest(const std::string& folder);

}  // namespace tessera::cli
