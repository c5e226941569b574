// tessera stop | pause | resume | checkpoint now: what changes a running run, behind the token of its address.json.
#include <chrono>
#include <cstdio>
#include <poll.h>

#include "common/clock.h"
#include "common/process.h"
#include "ops/cli/commands.h"
#include "ops/cli/http_client.h"
#include "ops/cli/progress.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

constexpr double kPauseDeadlineS = 120;

using std::chrono::seconds;

// Sleeps; true when a signal arrived.
bool interrupted(SignalWatch& signals, int timeout_ms) {
  pollfd wait{signals.descriptor(), POLLIN, 0};
  poll(&wait, 1, timeout_ms);
  return signals.count() > 0;
}

// Says `verb` (stop, pause, resume, checkpoint) to the coordinator of `run`; its address comes back.
// Errors: kUnavailable without a coordinator, kRefused without a token, and the coordinator's own.
Result<std::string> tell(const std::string& run, const std::string& token, const std::string& verb) {
  TESSERA_ASSIGN(const RunReference reference, find_run(run));
  if (reference.url.empty())
    return fail(ErrorCode::kUnavailable, reference.run_dir + " has no coordinator, so there is nothing to " + verb + "; start the run with tessera up");
  const std::string& key = token.empty() ? reference.token : token;
  if (key.empty())
    return tl::unexpected<Error>(Error{ErrorCode::kRefused, "to " + verb + " " + reference.url + " the token of its address.json is needed: name the run's folder, or give --token", exit_codes::kRefused});
  TESSERA_TRY(post(reference.url + "/api/v1/" + verb, key));
  return reference.url;
}

}  // namespace

int stop_command(const std::string& run, const std::string& token, int64_t wait_seconds, Format format) {
  SignalWatch signals;
  const auto url = tell(run, token, "stop");
  if (!url) return report(url.error(), format);
  say("stopping: the run finishes its step and writes a checkpoint");
  const double deadline = monotonic_seconds() + double(wait_seconds);
  Json last;
  bool ended = false;
  while (!ended && monotonic_seconds() < deadline) {
    if (interrupted(signals, 200)) break;
    auto status = get_json(*url + "/api/v1/status", seconds(2));
    ended = !status;
    if (status) last = std::move(*status);
  }
  if (!ended && wait_seconds > 0) say("the run has not ended yet; it goes on stopping by itself: tessera status " + run);
  const Json checkpoint = last.contains("checkpoint") ? last["checkpoint"]["last_step"] : Json(nullptr);
  if (format == Format::kJson) print_json({{"stopped", ended}, {"step", int64_t(number_at(last, "/progress/step"))}, {"checkpoint", checkpoint}});
  else if (ended) std::printf("stopped at step %s\n", human_count(int64_t(number_at(last, "/progress/step"))).c_str());
  return exit_codes::kDone;
}

int pause_command(const std::string& run, const std::string& token, Pause pause, Format format) {
  SignalWatch signals;
  const auto url = tell(run, token, pause == Pause::kPause ? "pause" : "resume");
  if (!url) return report(url.error(), format);
  Json status;
  for (const double deadline = monotonic_seconds() + kPauseDeadlineS; monotonic_seconds() < deadline && !interrupted(signals, 100);) {
    auto now = get_json(*url + "/api/v1/status", seconds(2));
    if (!now) return report(now.error(), format);
    status = std::move(*now);
    if ((text_at(status, "/run/state") == "PAUSED") == (pause == Pause::kPause)) break;
  }
  const std::string state = text_at(status, "/run/state");
  const int64_t step = int64_t(number_at(status, "/progress/step"));
  if (format == Format::kJson) print_json({{"state", state}, {"step", step}, {"reason", text_at(status, "/run/reason")}});
  else std::printf("%s at step %s: %s\n", state.c_str(), human_count(step).c_str(), text_at(status, "/run/reason").c_str());
  return exit_codes::kDone;
}

int checkpoint_now_command(const std::string& run, const std::string& token, Format format) {
  const auto url = tell(run, token, "checkpoint");
  if (!url) return report(url.error(), format);
  if (format == Format::kJson) print_json({{"asked", true}});
  else std::printf("asked: the run writes a checkpoint at its next step boundary (tessera checkpoint list shows it)\n");
  return exit_codes::kDone;
}

}  // namespace tessera::cli
