#include "worker/trainer/checkpoint_writer.h"

#include "common/clock.h"
#include "common/log.h"

namespace tessera::trainer {

CheckpointWriter::CheckpointWriter(std::string root, std::function<void(proto::Payload)> report) : root_(std::move(root)), report_(std::move(report)) {
  thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
}

CheckpointWriter::~CheckpointWriter() { wait_idle(); }

void CheckpointWriter::write(checkpoint::Snapshot snapshot) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !waiting_; });
  waiting_ = std::move(snapshot);
  changed_.notify_all();
}

void CheckpointWriter::wait_idle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !waiting_ && !writing_; });
}

void CheckpointWriter::run(std::stop_token stop) {
  for (;;) {
    std::optional<checkpoint::Snapshot> snapshot;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return waiting_.has_value(); })) return;
      snapshot = std::exchange(waiting_, std::nullopt);
      writing_ = true;
      changed_.notify_all();
    }
    const Millis start = monotonic_ms();
    auto written = checkpoint::write_snapshot(*snapshot, root_);
    if (written) {
      log_debug("share of checkpoint {} written in {} ms", snapshot->scalars.step, monotonic_ms() - start);
      report_(std::move(*written));
    } else {
      log_error("checkpoint {}: {}", snapshot->scalars.step, written.error().message);
      report_(proto::CheckpointFailed{snapshot->generation, snapshot->scalars.step, written.error().message});
    }
    std::lock_guard lock(mutex_);
    writing_ = false;
    changed_.notify_all();
  }
}

}  // namespace tessera::trainer
