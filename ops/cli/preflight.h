// Everything that can be known to fail before a run starts. Each check answers with one sentence that has the fix.
#pragma once

#include <string>

#include "common/config.h"
#include "common/process.h"
#include "common/result.h"

namespace tessera::cli {

struct DataFacts {
  int64_t sample_count = 0;
  int64_t shard_count = 0;
  std::string manifest_digest;
};
// Indexes the data (tessera-data index). Errors: kFixData (missing, unreadable samples while data.undecodable is fail,
// another digest than function.data.manifest_digest), and those of run_helper.
Result<DataFacts> index_data(const Config& config, const std::string& manifest_folder, SignalWatch& signals);

// Error kIo: a port that the configuration asks for is taken; kFixConfig: the address is not one of this host.
Status check_port(const char* key, const std::string& bind, int64_t port);
Status check_ports(const OperationConfig& operation);

// Error kIo: keep_last + 1 checkpoints do not fit on the file system of run_dir.
Status check_disk(const Config& config, const std::string& run_dir);

// NVIDIA GPUs among the device files of `folder` (/dev).
int count_gpus(const std::string& folder);
// Error kFixConfig: operation.device is cuda and `gpus` are fewer than operation.workers. What else a GPU may lack its trainer says.
Status check_devices(const OperationConfig& operation, int gpus);

// Error kUnavailable when a program that a local run needs is not built.
Status check_programs();

}  // namespace tessera::cli
