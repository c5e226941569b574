// tessera-coordinator: the head of a run. `tessera-coordinator CONFIG` on the head node, then workers and loaders.
#include <CLI/CLI.hpp>
#include <iostream>

#include "common/log.h"
#include "common/version.h"
#include "coordinator/daemon.h"

int main(int argc, char** argv) {
  using namespace tessera;
  SignalWatch signals;
  CLI::App app{"The head of a Tessera run: membership, ledger, checkpoints, status endpoint"};
  std::string path, run_dir, from;
  std::vector<std::string> overrides;
  bool fresh = false, resume = false;
  app.add_option("config", path, "configuration (YAML)")->required();
  app.add_option("--set", overrides, "override one key: section.key=value")->allow_extra_args(false);
  app.add_option("--run-dir", run_dir, "folder of the run");
  auto* fresh_flag = app.add_flag("--fresh", fresh, "start a new run");
  auto* resume_flag = app.add_flag("--resume", resume, "go on with the run in the folder")->excludes(fresh_flag);
  app.add_option("--from", from, "checkpoint folder (an import, another run's) that a new run begins with, at its step")->excludes(resume_flag);
  app.set_version_flag("--version", std::string(kVersion) + " " + build_commit());
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  if (!run_dir.empty()) overrides.push_back("operation.run_dir=" + run_dir);
  const auto failed = [](const Error& error) {
    std::cerr << "tessera-coordinator: " << error.message << "\n";
    return exit_code_of(error);
  };
  auto config = load_config(path, overrides, process_environment());
  if (!config) return failed(config.error());
  std::string log_file;
  if (config->operation.run_dir != "auto") log_file = config->operation.run_dir + "/logs/coordinator.jsonl";
  if (auto status = log_init({"coordinator", "", log_file, config->operation.log.format, config->operation.log.level}); !status) return failed(status.error());
  auto code = coordinator::run_coordinator(std::move(*config), fresh ? coordinator::StartMode::kFresh : resume ? coordinator::StartMode::kResume : coordinator::StartMode::kAuto, from, signals);
  return code ? *code : failed(code.error());
}
