#include "ops/cli/chaos.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <poll.h>

#include "common/clock.h"
#include "common/config.h"
#include "common/file.h"
#include "common/philox.h"
#include "common/process.h"
#include "ops/cli/checkpoint_files.h"
#include "ops/cli/helpers.h"
#include "ops/cli/http_client.h"
#include "ops/cli/ledger.h"
#include "ops/cli/progress.h"
#include "ops/cli/run_folder.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
constexpr double kStallWindowS = 5, kFirstStepDeadlineS = 120;

const std::vector<std::string> kTargets{"trainer", "hang", "loader", "daemon", "coordinator"};
const char* program_of(const std::string& target) {
  if (target == "loader") return "tessera-loader";
  if (target == "daemon") return "tessera-worker";
  if (target == "coordinator") return "tessera-coordinator";
  return "tessera-trainer";
}

// Standbys are no trainers yet: nothing of the run depends on them.
bool is_standby(const fs::path& process) {
  std::ifstream file(process / "comm");
  std::string name;
  return std::getline(file, name) && name == "tessera-standby";
}

// Pids of a program that has the run's folder in its command line, ascending; zombies and standbys left out.
std::vector<int64_t> pids_of(const std::string& program, const std::string& run_dir) {
  std::vector<int64_t> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "cmdline", std::ios::binary);
    const std::string words((std::istreambuf_iterator<char>(file)), {});
    const std::string first = words.substr(0, words.find('\0'));
    if (fs::path(first).filename() == program && words.find(run_dir) != std::string::npos && !is_standby(entry.path())) out.push_back(std::stoll(name));
  }
  std::sort(out.begin(), out.end());
  return out;
}

class Chaos {
 public:
  Chaos(const ChaosOptions& options, SignalWatch& signals) : o_(options), signals_(signals), random_(options.seed, Purpose::kChaos, 0, 0) {}

  Result<Json> run() {
    TESSERA_ASSIGN(const Config config, load_config(o_.config_path, o_.overrides, process_environment()));
    const std::string id = config.operation.run_id == "auto" ? config.source_name : config.operation.run_id;
    disturbed_ = free_folder(fs::absolute("runs/" + id + "-chaos").lexically_normal().string());
    undisturbed_ = disturbed_ + "-undisturbed";
    TESSERA_TRY(disturbed_run());
    // Stopped while it caught up with its ledger, a run ends with a checkpoint behind it: that one is compared.
    const CheckpointInfo end = newest_checkpoint(disturbed_);
    const Step steps = end.ok ? end.step : 0;
    if (steps < 2) return fail(ErrorCode::kUnavailable, "the disturbed run committed no two steps; give it longer with --for");
    say("the same " + human_count(steps) + " steps undisturbed, in " + undisturbed_);
    TESSERA_TRY(run_helper("tessera", command(undisturbed_, {"--steps", std::to_string(steps)}), signals_));
    const auto rows = read_json_lines(disturbed_ + "/metrics.jsonl");
    TESSERA_ASSIGN(const LedgerReport ledger, verify_run(disturbed_));
    const ChaosReport report = judge(faults_, rows, read_json_lines(disturbed_ + "/events.jsonl"), median_step_seconds(read_json_lines(undisturbed_ + "/metrics.jsonl")));
    const std::string state = end.state_digest, calm_state = newest_checkpoint(undisturbed_).state_digest;
    const std::string batches = batch_chain(disturbed_, steps), calm_batches = batch_chain(undisturbed_, steps);
    Json out{{"faults", faults_.size()}, {"by_target", Json::object()}};
    for (const Fault& fault : faults_) out["by_target"][fault.target] = out["by_target"].value(fault.target, 0) + 1;
    out["recovery_seconds"] = quantiles(report.recovery_seconds);
    out["stall_seconds"] = quantiles(report.stall_seconds);
    out["step_seconds_after_coordinator"] = quantiles(report.coordinator_gaps);
    out["undisturbed_step_seconds"] = quantiles(step_gaps(read_json_lines(undisturbed_ + "/metrics.jsonl")));
    out["goodput"] = report.goodput;
    out["steps"] = steps, out["steps_committed"] = ledger.steps_committed, out["steps_lost"] = report.steps_lost;
    out["lost"] = ledger.lost, out["repeated"] = ledger.repeated;
    out["state_digest"] = state, out["undisturbed_digest"] = calm_state;
    out["batch_digest"] = batches, out["undisturbed_batch_digest"] = calm_batches;
    const bool same_bits = promise_of(config.function) == Promise::kSameBits;
    if (!same_bits) say("only batches are compared: with function.reduction fast a step evaluated by another number of workers has other bits");
    out["compared"] = same_bits ? "all" : "batches";
    out["equal"] = !state.empty() && (!same_bits || state == calm_state) && !batches.empty() && batches == calm_batches;
    out["ledger_ok"] = ledger.ok();
    out["run_dir"] = disturbed_, out["seed"] = o_.seed, out["kill_every_seconds"] = o_.kill_every_s;
    return out;
  }

 private:
  static std::string free_folder(const std::string& wanted) {
    for (int number = 1;; ++number) {
      const std::string name = number == 1 ? wanted : wanted + "-" + std::to_string(number);
      if (!fs::exists(name) && !fs::exists(name + "-undisturbed")) return name;
    }
  }

  std::vector<std::string> command(const std::string& run_dir, const std::vector<std::string>& more) const {
    std::vector<std::string> out{"up", o_.config_path, "--json"};
    for (const std::string& item : o_.overrides) out.insert(out.end(), {"--set", item});
    out.insert(out.end(), {"--set", "operation.run_dir=" + run_dir, "--set", "operation.evaluate.at_end=none"});
    out.insert(out.end(), more.begin(), more.end());
    return out;
  }

  // The batch digest over the steps below `end`, as the ledger has it.
  static std::string batch_chain(const std::string& run_dir, Step end) {
    for (const Json& row : read_json_lines(run_dir + "/metrics.jsonl"))
      if (row.value("step", Step{-1}) == end - 1) return text_at(row, "/batch_chain");
    return "";
  }

  Status disturbed_run() {
    TESSERA_ASSIGN(const std::string self, helper_path("tessera"));
    TESSERA_TRY(make_folders(fs::path(disturbed_).parent_path().string()));
    SpawnOptions spawn;
    spawn.command = {self};
    const auto words = command(disturbed_, {});
    spawn.command.insert(spawn.command.end(), words.begin(), words.end());
    spawn.output_file = disturbed_ + ".log";
    spawn.own_session = true;
    TESSERA_ASSIGN(Child up, Child::spawn(spawn));
    ChildExit exit;
    TESSERA_TRY(wait_for_steps(up));
    say("a fault every " + human_seconds(o_.kill_every_s) + " for " + human_seconds(o_.for_s) + ", seed " + std::to_string(o_.seed) + ", in " + disturbed_);
    const double end = monotonic_seconds() + o_.for_s;
    double next = monotonic_seconds() + o_.kill_every_s * (0.5 + 0.5 * random_.next_double());
    bool ended = false;
    while (!(ended = up.poll_exit(&exit)) && monotonic_seconds() < end && signals_.count() == 0) {
      pollfd wait[2] = {{up.descriptor(), POLLIN, 0}, {signals_.descriptor(), POLLIN, 0}};
      poll(wait, 2, int(std::clamp((std::min(next, end) - monotonic_seconds()) * 1000, 1.0, 500.0)));
      if (monotonic_seconds() < next) continue;
      next += o_.kill_every_s;
      strike();
    }
    if (!ended) {
      up.send(SIGINT);  // finishes its step and writes a checkpoint
      while (!up.poll_exit(&exit)) {
        pollfd wait{up.descriptor(), POLLIN, 0};
        poll(&wait, 1, 500);
      }
    }
    if (exit.exit_code != exit_codes::kDone && exit.exit_code != exit_codes::kDrained)
      return fail(ErrorCode::kInternal, "the disturbed run ended with " + exit.cause + "; its last lines:\n" + last_lines(spawn.output_file, 15), exit.exit_code > 0 ? exit.exit_code : exit_codes::kBug);
    return {};
  }

  Status wait_for_steps(Child& up) {
    const double deadline = monotonic_seconds() + kFirstStepDeadlineS;
    ChildExit exit;
    for (;;) {
      if (up.poll_exit(&exit)) return fail(ErrorCode::kInternal, "the run did not start: " + exit.cause + "; its last lines:\n" + last_lines(disturbed_ + ".log", 15), exit.exit_code > 0 ? exit.exit_code : exit_codes::kBug);
      if (signals_.count() > 0) return fail(ErrorCode::kRetry, "interrupted before the first fault", exit_codes::kDrained);
      if (const auto address = read_address(disturbed_))
        if (const auto status = get_json(address->http + "/api/v1/status", std::chrono::seconds(2)); status && number_at(*status, "/progress/step") >= 3) return {};
      if (monotonic_seconds() > deadline) return fail(ErrorCode::kUnavailable, "no step within " + human_seconds(kFirstStepDeadlineS) + "; the log is " + disturbed_ + ".log");
      poll(nullptr, 0, 100);
    }
  }

  void strike() {
    const std::vector<std::string>& targets = o_.targets.empty() ? kTargets : o_.targets;
    const std::string& target = targets[random_.next_below(uint32_t(targets.size()))];
    const auto pids = pids_of(program_of(target), disturbed_);
    if (pids.empty()) return say("  no " + target + " to hit at this moment");
    const int64_t pid = pids[random_.next_below(uint32_t(pids.size()))];
    const bool hang = target == "hang";
    const double now = unix_seconds();
    if (::kill(pid_t(pid), hang ? SIGSTOP : SIGKILL) != 0) return;
    faults_.push_back({now, target, pid});
    say("  " + clock_time(now) + " " + (hang ? "SIGSTOP" : "kill -9") + " of " + program_of(target) + " " + std::to_string(pid));
  }

  static Json quantiles(std::vector<double> values) {
    if (values.empty()) return {{"count", 0}, {"p50", nullptr}, {"p99", nullptr}, {"p999", nullptr}, {"max", nullptr}};
    std::sort(values.begin(), values.end());
    const auto at = [&](double q) { return values[std::min(values.size() - 1, size_t(q * double(values.size())))]; };
    return {{"count", values.size()}, {"p50", at(0.5)}, {"p99", at(0.99)}, {"p999", at(0.999)}, {"max", values.back()}};
  }

  const ChaosOptions& o_;
  SignalWatch& signals_;
  PhiloxStream random_;
  std::string disturbed_, undisturbed_;
  std::vector<Fault> faults_;
};

std::string text_of(const Json& r) {
  char text[600];
  const auto quantile = [&](const char* name, const char* q) { return r[name][q].is_null() ? 0.0 : r[name][q].get<double>(); };
  std::snprintf(text, sizeof text,
                "%lld faults in %lld steps: recovery p50 %.2f s, p99 %.2f s, max %.2f s (%lld of trainers and daemons)\n"
                "longest wait between steps after a fault of loader or coordinator: p50 %.2f s, max %.2f s (%lld)\n"
                "goodput %.1f %%, %lld steps evaluated again, %lld samples lost, %lld repeated\nfinal state %s the undisturbed run's: %s",
                static_cast<long long>(r["faults"].get<int64_t>()), static_cast<long long>(r["steps"].get<int64_t>()), quantile("recovery_seconds", "p50"), quantile("recovery_seconds", "p99"),
                quantile("recovery_seconds", "max"), static_cast<long long>(r["recovery_seconds"]["count"].get<int64_t>()), quantile("stall_seconds", "p50"), quantile("stall_seconds", "max"),
                static_cast<long long>(r["stall_seconds"]["count"].get<int64_t>()), 100 * r["goodput"].get<double>(), static_cast<long long>(r["steps_lost"].get<int64_t>()),
                static_cast<long long>(r["lost"].get<int64_t>()), static_cast<long long>(r["repeated"].get<int64_t>()), r["equal"].get<bool>() ? "equals" : "DIFFERS FROM",
                r["state_digest"].get<std::string>().c_str());
  return text;
}

}  // namespace

std::vector<double> step_gaps(const std::vector<Json>& rows) {
  std::vector<double> gaps;
  for (size_t i = 1; i < rows.size(); ++i)
    if (number_at(rows[i], "/step") == number_at(rows[i - 1], "/step") + 1) gaps.push_back(number_at(rows[i], "/time") - number_at(rows[i - 1], "/time"));
  return gaps;
}

double median_step_seconds(const std::vector<Json>& rows) {
  std::vector<double> gaps = step_gaps(rows);
  if (gaps.empty()) return 0;
  std::nth_element(gaps.begin(), gaps.begin() + int64_t(gaps.size() / 2), gaps.end());
  return gaps[gaps.size() / 2];
}

ChaosReport judge(const std::vector<Fault>& faults, const std::vector<Json>& rows, const std::vector<Json>& events, double step_seconds) {
  ChaosReport out;
  if (rows.empty()) return out;
  const auto time = [&](size_t i) { return number_at(rows[i], "/time"); };
  for (const Fault& fault : faults) {
    size_t next = 0;
    while (next < rows.size() && time(next) <= fault.time) ++next;
    if (next == 0 || next == rows.size()) continue;  // before the first step, or nothing came after it: the stop did
    if (fault.target == "loader" || fault.target == "coordinator") {
      double longest = 0, last = fault.time;
      if (fault.target == "coordinator")
        for (size_t i = next; i < rows.size() && time(i) < fault.time + kStallWindowS; ++i) out.coordinator_gaps.push_back(time(i) - time(i - 1));
      for (size_t i = next; i < rows.size() && last < fault.time + kStallWindowS; ++i) longest = std::max(longest, time(i) - last), last = time(i);
      out.stall_seconds.push_back(longest);
      continue;
    }
    const std::string generation = text_at(rows[next - 1], "/generation");
    size_t recovered = next;
    while (recovered < rows.size() && text_at(rows[recovered], "/generation") == generation) ++recovered;
    if (recovered < rows.size()) out.recovery_seconds.push_back(time(recovered) - fault.time);
  }
  const double wall = time(rows.size() - 1) - time(0);
  if (wall > 0) out.goodput = std::min(1.0, double(rows.size() - 1) * step_seconds / wall);
  // "generation 1.3: 2 workers from step 17: ...": what was committed beyond that step before is evaluated again.
  for (const Json& event : events) {
    long long from = 0;
    const std::string text = text_at(event, "/text");
    const size_t at = text.find(" workers from step ");
    if (!text.starts_with("generation ") || at == std::string::npos || std::sscanf(text.c_str() + at, " workers from step %lld", &from) != 1) continue;
    int64_t committed = from;
    for (size_t i = 0; i < rows.size() && time(i) < number_at(event, "/time"); ++i) committed = std::max(committed, int64_t(number_at(rows[i], "/step")) + 1);
    out.steps_lost += committed - from;
  }
  return out;
}

int chaos_command(const ChaosOptions& options) {
  SignalWatch signals;
  for (const std::string& target : options.targets)
    if (std::find(kTargets.begin(), kTargets.end(), target) == kTargets.end())
      return report(Error{ErrorCode::kUsage, "--targets knows trainer, hang, loader, daemon and coordinator, not '" + target + "'"}, options.format);
  auto result = Chaos(options, signals).run();
  if (!result) return report(result.error(), options.format);
  const bool good = (*result)["equal"].get<bool>() && (*result)["ledger_ok"].get<bool>();
  if (options.format == Format::kJson) print_json(*result);
  else std::printf("%s\n", text_of(*result).c_str());
  return good ? exit_codes::kDone : exit_codes::kDataCorrupt;
}

}  // namespace tessera::cli
