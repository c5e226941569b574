// A generation's own thread for its collective: it does what it is given, in order, while the training thread computes. All
// ranks give the same work in the same order, so their calls meet. After an error nothing more is begun: the generation is
// over, and every later wait() says so.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "common/result.h"

namespace tessera::trainer {

class Exchanger {
 public:
  enum class Where {
    kOwnThread,
    kHere,  // submit() does the work before it returns: with one rank there is nothing to hide
  };
  explicit Exchanger(Where where);
  // What was submitted still runs (after an error: does not), so whoever cannot rely on the peers cancels the collective
  // first.
  ~Exchanger();
  void submit(std::function<Status()> work);
  // Until all that was submitted has ended. The first error, at once and for ever after it happened.
  Status wait();

 private:
  void run(std::stop_token stop);
  void do_one(const std::function<Status()>& work);

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<std::function<Status()>> queue_;
  bool busy_ = false;
  std::optional<Error> failed_;
  std::jthread thread_;
};

}  // namespace tessera::trainer
