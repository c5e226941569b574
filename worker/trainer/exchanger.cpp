#include "worker/trainer/exchanger.h"

namespace tessera::trainer {

Exchanger::Exchanger(Where where) {
  if (where == Where::kOwnThread) thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
}

Exchanger::~Exchanger() { (void)wait(); }

void Exchanger::submit(std::function<Status()> work) {
  if (!thread_.joinable()) return do_one(work);
  std::lock_guard lock(mutex_);
  queue_.push_back(std::move(work));
  changed_.notify_all();
}

Status Exchanger::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return queue_.empty() && !busy_; });
  if (failed_) return tl::unexpected(*failed_);
  return {};
}

// The error is looked at by the thread that does the work only, until wait() has seen it idle.
void Exchanger::do_one(const std::function<Status()>& work) {
  if (failed_) return;
  Status done;
  try {
    done = work();
  } catch (const std::exception& e) {  // LibTorch throws
    done = fail(ErrorCode::kInternal, std::string("[exchange] ") + e.what());
  }
  if (!done) failed_ = done.error();
}

void Exchanger::run(std::stop_token stop) {
  for (;;) {
    std::function<Status()> work;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return !queue_.empty(); })) return;
      work = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
    }
    do_one(work);
    work = {};
    std::lock_guard lock(mutex_);
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace tessera::trainer
