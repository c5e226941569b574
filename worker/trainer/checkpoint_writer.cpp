#include "worker/trainer/checkpoint_writer.h"

#include <algorithm>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "worker/model/backend.h"

namespace tessera::trainer {
namespace {

constexpr int kNice = 5;

}  // namespace

CheckpointWriter::CheckpointWriter(std::string root, std::function<void(proto::Payload)> report) : root_(std::move(root)), report_(std::move(report)) {
  thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
}

CheckpointWriter::~CheckpointWriter() { wait_idle(); }

void CheckpointWriter::take(const model::State& state, checkpoint::Scalars scalars, Generation generation, Rank rank, int world_size) {
  // A GPU's digest is taken here: it waits for the update that made this state, and the kernels' buffers have one user.
  if (model::on_device(state.weights)) scalars.state_digest = state.digest();
  Order order{&state, std::move(scalars), generation, rank, world_size};
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return tasks_.empty(); });
  if (!busy_) {
    copying_ = true;
    tasks_.push_back(std::move(order));
  } else {
    lock.unlock();
    auto snapshot = copy(std::move(order));
    lock.lock();
    tasks_.push_back(std::move(snapshot));
  }
  changed_.notify_all();
}

void CheckpointWriter::wait_copied() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !copying_; });
}

void CheckpointWriter::write_share(const proto::WriteShare& wanted) {
  std::lock_guard lock(mutex_);
  asked_ = wanted;
  write_asked();
}

// With the mutex held.
void CheckpointWriter::write_asked() {
  if (!asked_ || !held_ || held_->generation != asked_->generation || held_->scalars.step != asked_->step || held_->rank != asked_->rank) return;
  log_info("writing share {} of checkpoint {} for a rank that is gone", asked_->rank, asked_->step);
  asked_.reset();
  tasks_.push_back(held_);
  changed_.notify_all();
}

void CheckpointWriter::release(Step step) {
  std::lock_guard lock(mutex_);
  if (held_ && held_->scalars.step <= step) held_.reset();
}

void CheckpointWriter::wait_idle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return tasks_.empty() && !busy_; });
}

// Own share and, with several ranks, the next one's to hold. The digest is the whole state's, whoever writes what.
std::shared_ptr<checkpoint::Snapshot> CheckpointWriter::copy(Order order) {
  if (!model::on_device(order.state->weights)) order.scalars.state_digest = order.state->digest();
  auto own = std::make_shared<checkpoint::Snapshot>(checkpoint::take_snapshot(*order.state, order.scalars, order.generation, order.rank, order.world_size));
  std::shared_ptr<checkpoint::Snapshot> next;
  if (order.world_size > 1)
    next = std::make_shared<checkpoint::Snapshot>(checkpoint::take_snapshot(*order.state, order.scalars, order.generation, (order.rank + 1) % order.world_size, order.world_size));
  std::lock_guard lock(mutex_);
  held_ = std::move(next);
  write_asked();
  return own;
}

void CheckpointWriter::write(const checkpoint::Snapshot& snapshot) {
  const Millis start = monotonic_ms();
  auto written = checkpoint::write_snapshot(snapshot, root_);
  if (written) {
    log_debug("share {} of checkpoint {} written in {} ms", snapshot.rank, snapshot.scalars.step, monotonic_ms() - start);
    return report_(std::move(*written));
  }
  log_error("checkpoint {}: {}", snapshot.scalars.step, written.error().message);
  report_(proto::CheckpointFailed{snapshot.generation, snapshot.scalars.step, written.error().message});
}

void CheckpointWriter::run(std::stop_token stop) {
  // Where all cores compute, this thread must not push the training thread aside; it has the whole next step for its copy.
  (void)::setpriority(PRIO_PROCESS, id_t(::gettid()), kNice);
  for (;;) {
    Task task;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return !tasks_.empty(); })) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      busy_ = true;
      changed_.notify_all();
    }
    if (auto* order = std::get_if<Order>(&task)) {
      auto snapshot = copy(std::move(*order));
      {
        std::lock_guard lock(mutex_);
        copying_ = false;
        changed_.notify_all();
      }
      write(*snapshot);
    } else {
      write(*std::get<std::shared_ptr<checkpoint::Snapshot>>(task));
    }
    std::lock_guard lock(mutex_);
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace tessera::trainer
