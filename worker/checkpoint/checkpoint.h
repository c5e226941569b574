// Checkpoints: state[k] as safetensors files, one per writing rank, and a manifest that names them (docs/checkpoint-format.md).
// Whole tensors are dealt to writers by size, never split; names do not mention ranks, so any world size reads any
// checkpoint. Files are synced and hashed as they are written and verified when they are read.
#pragma once

#include <string>
#include <vector>

#include "common/ids.h"
#include "common/result.h"
#include "common/safetensors.h"
#include "proto/messages.h"
#include "worker/model/state.h"

namespace tessera::checkpoint {

// Every tensor of the state under its name in checkpoints; the views point into the state's buffers.
std::vector<TensorView> state_tensors(const model::State& state);

// Indices of the tensors that each of world_size writers gets: largest first to the least loaded; the same everywhere.
std::vector<std::vector<size_t>> deal(const std::vector<TensorView>& tensors, int world_size);

// What the manifest says beside files and tensors.
struct Scalars {
  Step step = 0;
  int64_t adam_steps = 0;
  std::string lineage;
  std::string function_yaml;
  std::string function_id;
  std::string numerics_class;
  StateDigest state_digest;
  int64_t sample_position = 0;  // samples consumed within the epoch
};

// One rank's share of state[k], copied out of the state: the training thread may go on.
struct Snapshot {
  Scalars scalars;
  Generation generation;
  Rank rank = 0;
  int world_size = 1;
  std::vector<TensorView> tensors;  // into `bytes`
  std::vector<float> bytes;
};
Snapshot take_snapshot(const model::State& state, const Scalars& scalars, Generation generation, Rank rank, int world_size);

// Name of the attempt's folder: ".attempt-<term>-<number>-<step>".
std::string attempt_name(Generation generation, Step step);
// "state-00000-of-00004.safetensors"
std::string file_name(Rank rank, int world_size);

// Writes the rank's file into root/attempt (made when missing). Returns the message for the coordinator, which joins the
// parts into manifest.json and renames the folder. Error: kIo (disk full ...).
Result<proto::CheckpointFile> write_snapshot(const Snapshot& snapshot, const std::string& root);

struct Manifest {
  std::string folder;
  Scalars scalars;
  struct File {
    std::string name;
    int64_t size_bytes = 0;
    Hash128 hash;
  };
  std::vector<File> files;
};
// Errors: kIo, kFixData naming the file and what is wrong.
Result<Manifest> read_manifest(const std::string& folder);

// Reads and verifies a whole checkpoint: every file's hash, every tensor's presence, dtype and shape for the function's
// model, and the state digest. Errors: kFixData ("...: hash differs: damaged", "tensor X has shape [..], the configuration
// needs [..]"), kIo.
Result<model::State> read_checkpoint(const std::string& folder, const FunctionConfig& function);

// Writes a whole checkpoint from one process: files, manifest, then one rename to `folder`, which must not exist. For
// import. Error: kIo; nothing is left behind.
Status write_checkpoint(const model::State& state, const Scalars& scalars, const std::string& folder);

}  // namespace tessera::checkpoint
