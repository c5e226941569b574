// tessera: what a person types. Runs, watches and stops runs; like git it runs the helpers beside it for the rest.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

#include "common/config.h"
#include "ops/cli/bench_train.h"
#include "ops/cli/chaos.h"
#include "ops/cli/commands.h"
#include "ops/cli/helpers.h"
#include "ops/cli/ledger.h"
#include "ops/cli/replay.h"
#include "ops/cli/up.h"

namespace tessera::cli {
namespace {

// Commands that another program answers; everything behind the word is its own.
const std::map<std::string, std::string> kHelpers{{"data", "tessera-data"},          {"evaluate", "tessera-model"},  {"embed", "tessera-model"},  {"neighbours", "tessera-model"},
                                                  {"visualize", "tessera-model"},    {"import", "tessera-model"},    {"export", "tessera-model"}, {"bench", "tessera-model"}};

int run_helper_command(const std::string& word, const std::vector<std::string>& rest) {
  std::string program = kHelpers.at(word);
  std::vector<std::string> arguments = rest;
  if (word == "bench" && !rest.empty() && rest[0] == "loader") program = "tessera-data";
  if (program == "tessera-model" || word == "bench") arguments.insert(arguments.begin(), word);
  return report(exec_helper(program, arguments), Format::kText);
}

const std::map<std::string, double> kTimeUnits{{"s", 1}, {"m", 60}, {"min", 60}, {"h", 3600}};

// The nearest option or command to what was not understood.
std::string suggestion(const CLI::App& app, const std::vector<std::string>& words) {
  std::vector<std::string> known;
  const std::function<void(const CLI::App&)> collect = [&](const CLI::App& at) {
    for (const CLI::Option* option : at.get_options())
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    for (const CLI::App* command : at.get_subcommands(nullptr)) {
      known.push_back(command->get_name());
      if (command->parsed()) collect(*command);
    }
  };
  collect(app);
  for (const std::string& word : words) {
    const std::string name = word.substr(0, word.find('='));
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    if (const std::string near = nearest_word(name, known); !near.empty()) return "; did you mean " + near + " instead of " + name + "?";
  }
  return "";
}

int usage_error(CLI::App& app, const CLI::ParseError& error, const std::vector<std::string>& words) {
  if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
  std::fprintf(stderr, "tessera: %s%s\nRun with --help for more.\n", error.what(), suggestion(app, words).c_str());
  return exit_codes::kUsage;
}

// "tessera up configs/a.yaml --workers 2": as typed, without what chooses between a new and an old run; onward: also without
// --steps, where this one was to stop.
std::string command_as_typed(const std::vector<std::string>& words, bool onward = false) {
  std::string out = "tessera";
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--fresh" || word == "--resume" || word.starts_with("--from=")) continue;
    if (onward && word.starts_with("--steps=")) continue;
    if (word == "--from" || (onward && word == "--steps")) {  // what a run begins with is no part of going on with it
      ++i;
      continue;
    }
    const bool plain = word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:,+@%") == std::string::npos && !word.empty();
    out += plain ? " " + word : " '" + word + "'";
  }
  return out;
}

// Values that the commands share; one command runs in a process.
struct Arguments {
  std::string run, token, role, config, out, from;
  std::vector<std::string> overrides;
  bool json = false, watch = false, fresh = false, resume = false, sha256 = false;
  int64_t workers = 0, loaders = 0, steps = 0, wait_seconds = 600, lines = 1000, samples = 0, devices = 0;
  double images_per_second = 0, kill_every = 15, duration = 120;
  Step step = 0;
  uint64_t seed = 0;
  std::vector<std::string> targets;
  Format format() const { return json ? Format::kJson : Format::kText; }
  Watching watching() const { return watch ? Watching::kUntilTheEnd : Watching::kOnce; }
};

using Action = std::function<int()>;

class Commands {
 public:
  Commands(CLI::App& app, const std::vector<std::string>& words) : words_(words) {
    add_up(app);
    add_watching(app);
    add_checkpoint(app);
    add_config(app);
    add_rest(app);
    for (const auto& [word, program] : kHelpers) app.add_subcommand(word, "Runs " + program)->group("Answered by the programs beside this one");
  }
  int run() const {
    for (const auto& [command, action] : actions_)
      if (command->parsed()) return action();
    return exit_codes::kUsage;
  }

 private:
  CLI::App* command(CLI::App& parent, const std::string& name, const std::string& meaning, Action action) {
    CLI::App* out = parent.add_subcommand(name, meaning);
    out->add_flag("--json", a_.json, "One JSON object on the last line of stdout; the rest on stderr");
    actions_.emplace_back(out, std::move(action));
    return out;
  }
  void config_options(CLI::App* to) {
    to->add_option("config", a_.config, "Configuration (YAML)")->required()->envname("TESSERA_CONFIG");
    to->add_option("--set", a_.overrides, "Override one key: section.key=value")->allow_extra_args(false);
  }
  void run_options(CLI::App* to, bool watch) {
    to->add_option("run", a_.run, "Run id below runs/, folder, or http://HOST:PORT; default: the newest");
    if (watch) to->add_flag("--watch,-w", a_.watch, "Again and again until the run ends");
  }

  void add_up(CLI::App& app) {
    CLI::App* up = command(app, "up", "Train on this machine: coordinator, loaders, workers, watched until the end", [this] {
      UpOptions options{a_.config, a_.overrides, a_.workers, a_.loaders, a_.steps, a_.from, StartMode::kUnspecified, a_.format(), command_as_typed(words_), command_as_typed(words_, true)};
      if (a_.fresh) options.mode = StartMode::kFresh;
      if (a_.resume) options.mode = StartMode::kResume;
      return up_command(options);
    });
    config_options(up);
    up->add_option("--workers", a_.workers, "Workers (operation.workers)")->check(CLI::Range(1, 1024));
    up->add_option("--loaders", a_.loaders, "Loaders (operation.loaders)")->check(CLI::Range(1, 1024));
    up->add_option("--steps", a_.steps, "Stop after so many steps of the run; its schedules keep their length")->check(CLI::PositiveNumber);
    auto* fresh = up->add_flag("--fresh", a_.fresh, "Start a new run, beside an existing one");
    auto* resume = up->add_flag("--resume", a_.resume, "Go on with the existing run")->excludes(fresh);
    up->add_option("--from", a_.from, "Checkpoint folder (an import, another run's) that a new run begins with, at its step")->excludes(resume);
  }

  void add_watching(CLI::App& app) {
    run_options(command(app, "status", "State, progress, workers, loaders, alerts of a run", [this] { return status_command(a_.run, a_.watching(), a_.format()); }), true);
    run_options(command(app, "events", "What happened in a run, in sentences", [this] { return events_command(a_.run, a_.watching(), a_.format()); }), true);
    CLI::App* logs = command(app, "logs", "Log lines of all processes of a run, by time", [this] { return logs_command(a_.run, a_.role, a_.lines, a_.watching(), a_.format()); });
    run_options(logs, true);
    logs->add_option("--role", a_.role, "coordinator, trainer, loader or worker only");
    logs->add_option("--lines,-n", a_.lines, "The last so many lines")->check(CLI::PositiveNumber);
    for (const auto& [word, meaning, pause] : {std::tuple{"pause", "Hold a run after its step and a checkpoint; its processes wait", Pause::kPause}, std::tuple{"resume", "Let a paused run go on", Pause::kResume}}) {
      CLI::App* hold = command(app, word, meaning, [this, pause = pause] { return pause_command(a_.run, a_.token, pause, a_.format()); });
      run_options(hold, false);
      hold->add_option("--token", a_.token, "Token of the run's address.json, for a run known by its URL only");
    }
    CLI::App* stop = command(app, "stop", "End a run after its step and a checkpoint", [this] { return stop_command(a_.run, a_.token, a_.wait_seconds, a_.format()); });
    run_options(stop, false);
    stop->add_option("--token", a_.token, "Token of the run's address.json, for a run known by its URL only");
    stop->add_option("--wait", a_.wait_seconds, "Seconds to wait for the end; 0: none")->check(CLI::NonNegativeNumber);
  }

  void add_checkpoint(CLI::App& app) {
    CLI::App* group = app.add_subcommand("checkpoint", "Checkpoints of a run");
    group->require_subcommand(1);
    run_options(command(*group, "list", "Checkpoints and their digests, as their manifests say", [this] { return checkpoint_list_command(a_.run, a_.format()); }), false);
    run_options(command(*group, "verify", "Read every byte: hashes, tensors and digests; 65 if any is bad", [this] { return checkpoint_verify_command(a_.run, a_.format()); }), false);
    CLI::App* digest = command(*group, "digest", "Digest of the newest checkpoint's state, computed from its files", [this] {
      return checkpoint_digest_command(a_.run, a_.sha256 ? DigestKind::kSha256 : DigestKind::kState, a_.format());
    });
    run_options(digest, false);
    digest->add_flag("--sha256", a_.sha256, "SHA-256 of the canonical bytes: tensors by name, fp32, little-endian");
    CLI::App* now = command(*group, "now", "Ask the run for a checkpoint at its next step", [this] { return checkpoint_now_command(a_.run, a_.token, a_.format()); });
    run_options(now, false);
    now->add_option("--token", a_.token, "Token of the run's address.json, for a run known by its URL only");
  }

  void add_config(CLI::App& app) {
    CLI::App* group = app.add_subcommand("config", "Configurations");
    group->require_subcommand(1);
    config_options(command(*group, "check", "Whether a configuration is sound", [this] { return config_check_command(a_.config, a_.overrides, a_.format()); }));
    CLI::App* explain = command(*group, "explain", "What a configuration costs: parameters, memory, FLOPs, steps", [this] {
      return config_explain_command(a_.config, a_.overrides, a_.samples, a_.images_per_second, a_.format());
    });
    config_options(explain);
    explain->add_option("--samples", a_.samples, "Images of the dataset")->check(CLI::PositiveNumber);
    explain->add_option("--images-per-second", a_.images_per_second, "Throughput, for the wall time")->check(CLI::PositiveNumber);
    command(*group, "reference", "Every key as a Markdown page", [] { return config_reference_command(); });
    CLI::App* import = command(*group, "import", "A published I-JEPA YAML as a configuration of Tessera", [this] { return config_import_command(a_.config, a_.out, a_.devices); });
    import->add_option("file", a_.config, "The published YAML")->required();
    import->add_option("--out", a_.out, "File to write; default: stdout");
    import->add_option("--devices", a_.devices, "Devices of the published run: tiles of a step; default: 2048 images a step")->check(CLI::PositiveNumber);
  }

  void add_rest(CLI::App& app) {
    run_options(command(app, "verify", "Whether a run trained every step once, from its records", [this] { return verify_command(a_.run, a_.format()); }), false);
    CLI::App* replay = command(app, "replay", "Evaluate a committed step again and compare it with the ledger", [this] { return replay_command(a_.run, a_.step, a_.workers, a_.format()); });
    run_options(replay, false);
    replay->add_option("--step", a_.step, "The step")->required()->check(CLI::NonNegativeNumber);
    replay->add_option("--workers", a_.workers, "Workers; default: the configuration's")->check(CLI::Range(1, 1024));
    CLI::App* chaos = command(app, "chaos", "A run under kill -9 and SIGSTOP, then the same undisturbed: recovery times, goodput, equal bits", [this] {
      return chaos_command({a_.config, a_.overrides, a_.kill_every, a_.duration, a_.seed, a_.targets, a_.format()});
    });
    config_options(chaos);
    chaos->add_option("--kill-every", a_.kill_every, "Time between faults: 15, 15s, 2m")->transform(CLI::AsNumberWithUnit(kTimeUnits))->check(CLI::PositiveNumber);
    chaos->add_option("--for", a_.duration, "Length of the disturbed run: 600, 10m")->transform(CLI::AsNumberWithUnit(kTimeUnits))->check(CLI::PositiveNumber);
    chaos->add_option("--seed", a_.seed, "Seed of who is hit and when");
    chaos->add_option("--targets", a_.targets, "Of trainer, hang, loader, daemon, coordinator; default: all")->delimiter(',');
    command(app, "doctor", "Whether this machine is ready", [this] { return doctor_command(a_.format()); });
    command(app, "version", "Versions of Tessera and of what it was built with", [this] { return version_command(a_.format()); });
  }

  const std::vector<std::string>& words_;
  Arguments a_;
  std::vector<std::pair<CLI::App*, Action>> actions_;
};

int main_function(const std::vector<std::string>& words) {
  if (words.size() > 1 && words[0] == "bench" && words[1] == "train") return bench_train_main({words.begin() + 2, words.end()});
  if (!words.empty() && kHelpers.contains(words[0])) return run_helper_command(words[0], {words.begin() + 1, words.end()});
  CLI::App app{"Tessera: deterministic elastic I-JEPA pre-training", "tessera"};
  app.require_subcommand(1);
  Commands commands(app, words);
  try {
    std::vector<std::string> reversed(words.rbegin(), words.rend());
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, error, words);
  }
  return commands.run();
}

}  // namespace
}  // namespace tessera::cli

int main(int argc, char** argv) {
  setenv("GOMP_SPINCOUNT", tessera::kOpenMpSpins, 0);  // for whatever this starts: OpenMP reads it when a program is loaded
  return tessera::cli::main_function(std::vector<std::string>(argv + 1, argv + argc));
}
