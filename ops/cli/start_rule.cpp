#include "ops/cli/start_rule.h"

namespace tessera::cli {

Result<StartDecision> decide_start(const StartRequest& request, const RunOnDisk& on_disk, const std::function<bool(const std::string&)>& exists) {
  const std::string run = "run " + request.run_id + " in " + request.run_dir;
  if (request.mode == StartMode::kFresh) {
    if (!on_disk.exists) return StartDecision{StartAction::kStartNew, request.run_id, request.run_dir};
    for (int number = 2;; ++number) {
      const std::string suffix = "-" + std::to_string(number);
      if (!exists(request.run_dir + suffix)) return StartDecision{StartAction::kStartNew, request.run_id + suffix, request.run_dir + suffix};
    }
  }
  if (!on_disk.exists) {
    if (request.mode == StartMode::kResume)
      return fail(ErrorCode::kUsage, "there is no run to resume in " + request.run_dir + "; start one without --resume: " + request.command);
    return StartDecision{StartAction::kStartNew, request.run_id, request.run_dir};
  }
  const std::string fresh = "\n  start anew beside it: " + request.command + " --fresh";
  if (!on_disk.answers_at.empty())
    return fail(ErrorCode::kUsage, run + " is running already at " + on_disk.answers_at + "\n  watch it:             tessera status " + request.run_dir +
                                       " --watch\n  stop it:              tessera stop " + request.run_dir + fresh);
  if (!on_disk.function_id.empty() && on_disk.function_id != request.function_id)
    return fail(ErrorCode::kUsage, run + " was trained with another `function:` part (function_id " + on_disk.function_id + ", now " + request.function_id +
                                       "); undo the change to go on with it, or" + fresh);
  if (on_disk.newest_checkpoint >= request.goal) return StartDecision{StartAction::kShowSummary, request.run_id, request.run_dir};
  if (request.mode == StartMode::kResume) return StartDecision{StartAction::kResume, request.run_id, request.run_dir};
  const std::string at = on_disk.newest_checkpoint < 0 ? "without a checkpoint yet" : "its newest checkpoint is step " + std::to_string(on_disk.newest_checkpoint) + " of " + std::to_string(request.goal);
  return fail(ErrorCode::kUsage, run + " is unfinished: " + at + "\n  go on with it:        " + request.command + " --resume" + fresh);
}

}  // namespace tessera::cli
