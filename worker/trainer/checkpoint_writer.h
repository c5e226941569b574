// Takes and writes snapshots in the background. No byte of state changes before the vote fence (DESIGN section 4), so the
// copy is made while the next step is evaluated: the training thread only waits for it, in wait_copied(), before it next
// changes the state, and by then the copy is long done.
//
// Every share is held by two ranks until its checkpoint is published: rank r copies share r + 1 as well, and writes it when
// the coordinator says that the other rank is gone (WriteShare).
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <variant>

#include "worker/checkpoint/checkpoint.h"

namespace tessera::trainer {

class CheckpointWriter {
 public:
  // report: called on the writer's thread with CheckpointFile or CheckpointFailed.
  CheckpointWriter(std::string root, std::function<void(proto::Payload)> report);
  ~CheckpointWriter();

  // Begins a snapshot of this rank's share (and of the next rank's, to hold). `scalars.state_digest` is filled in here. The state must live and stay as
  // it is until wait_copied() has returned. While an earlier snapshot is still being written the copy is made before this
  // returns; a third one waits for the first.
  void take(const model::State& state, checkpoint::Scalars scalars, Generation generation, Rank rank, int world_size);
  void wait_copied();
  // Writes the share that is held for that rank of that snapshot, once it has been copied; nothing when it is not held any more.
  void write_share(const proto::WriteShare& wanted);
  // Snapshots up to this step need not be held any longer.
  void release(Step step);
  // Everything taken is written.
  void wait_idle();

 private:
  struct Order {
    const model::State* state = nullptr;
    checkpoint::Scalars scalars;
    Generation generation;
    Rank rank = 0;
    int world_size = 1;
  };
  using Task = std::variant<Order, std::shared_ptr<checkpoint::Snapshot>>;
  void run(std::stop_token stop);
  std::shared_ptr<checkpoint::Snapshot> copy(Order order);
  void write(const checkpoint::Snapshot& snapshot);
  void write_asked();

  const std::string root_;
  const std::function<void(proto::Payload)> report_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Task> tasks_;  // at most one snapshot and the shares of others
  bool busy_ = false, copying_ = false;
  std::shared_ptr<checkpoint::Snapshot> held_;  // the next rank's share of the newest snapshot
  std::optional<proto::WriteShare> asked_;      // of a snapshot whose copy is not made yet
  std::jthread thread_;
};

}  // namespace tessera::trainer
