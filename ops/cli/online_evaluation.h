// `operation.evaluate.every_steps`: the linear probe, k-NN (k = 20) and collapse monitors of checkpoints while the run goes on. It reads published checkpoints only,
// in a process of its own at the lowest priority, so it can neither change a bit of the run nor hold it up.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/process.h"

namespace tessera::cli {

// What a probe has to say: "probe at step 800: class 31.2 % (k-NN 28.0 %), count 40.1 % (k-NN 37.5 %); effective rank 12.3".
struct ProbeNews {
  const char* severity = "info";  // "warning": a collapse, once until a later probe finds none; a probe that failed
  std::string text;
};

class OnlineEvaluation {
 public:
  // Nothing happens when operation.evaluate.every_steps is 0. data: the probe's labelled images.
  OnlineEvaluation(const OperationConfig& operation, std::string run_dir, std::string data);
  ~OnlineEvaluation();
  // Starts what is due and collects what ended; call it often, it does not wait.
  std::vector<ProbeNews> tick();
  // A probe that still runs when training is done: waits for it, at most that long.
  std::vector<ProbeNews> finish(Millis at_most_ms);

 private:
  std::string due() const;
  void start(const std::string& checkpoint, std::vector<ProbeNews>& news);
  std::vector<ProbeNews> ended(const ChildExit& exit);

  int64_t every_ = 0;
  std::string train_images_, test_images_, run_dir_, data_, test_data_;
  Step last_ = 0;         // step of the newest checkpoint that was evaluated, or tried
  Step step_ = 0;         // of the one at work
  bool cores_taken_ = false;  // by trainers, all of them
  bool collapsed_ = false;    // said already
  std::optional<Child> child_;
};

}  // namespace tessera::cli
