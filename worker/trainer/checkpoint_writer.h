// Writes snapshots in the background: the training thread hands over a copy and goes on. At most one waits behind the one
// that is being written; a third makes the training thread wait.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "worker/checkpoint/checkpoint.h"

namespace tessera::trainer {

class CheckpointWriter {
 public:
  // report: called on the writer's thread with CheckpointFile or CheckpointFailed.
  CheckpointWriter(std::string root, std::function<void(proto::Payload)> report);
  ~CheckpointWriter();
  void write(checkpoint::Snapshot snapshot);
  void wait_idle();

 private:
  void run(std::stop_token stop);
  std::string root_;
  std::function<void(proto::Payload)> report_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::optional<checkpoint::Snapshot> waiting_;
  bool writing_ = false;
  std::jthread thread_;
};

}  // namespace tessera::trainer
