// tessera-loader: the data-loader service.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/log.h"
#include "common/version.h"
#include "data_loader/server/loader.h"

namespace {

using namespace tessera;

// SIGTERM and SIGINT as a descriptor. Call before any thread.
int stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

// SIGTERM when the parent ends; false when it already has.
bool end_with_parent(pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  return getppid() == parent;
}

}  // namespace

int main(int argc, char** argv) {
  const pid_t parent = getppid();
  CLI::App app{"Reads, decodes and crops images, draws masks, and streams tiles to trainers", "tessera-loader"};
  app.set_version_flag("--version", std::string(kVersion));
  data::LoaderOptions options;
  bool standalone = false, with_parent = false;
  int64_t abandoned_seconds = 600;
  std::string log_dir;
  LogOptions log;
  log.role = "loader";
  auto* coordinator = app.add_option("--coordinator", options.coordinator, "HOST:PORT of the coordinator, or the run's address.json")->envname("TESSERA_COORDINATOR");
  auto* alone = app.add_flag("--standalone", standalone, "No coordinator: serve whole images to tessera-model")->excludes(coordinator);
  auto* data = app.add_option("--data", options.data_path, "Dataset, instead of the coordinator's operation.data_path");
  app.add_option("--address-file", options.address_file, "Standalone: where to write the address")->needs(alone);
  app.add_option("--interpolation", options.interpolation, "Standalone: bilinear or bicubic")->check(CLI::IsMember({"bilinear", "bicubic"}));
  app.add_option("--function", options.function_file, "Standalone: serve the tiles of this function config (YAML) too")->needs(alone);
  app.add_option("--threads", options.threads, "Worker threads; never changes bits")->check(CLI::Range(1, 1024));
  app.add_option("--bind", options.bind, "Address to listen on");
  app.add_option("--port", options.port, "Port to listen on; 0 takes a free one")->check(CLI::Range(0, 65535));
  app.add_option("--advertise", options.advertise, "Address that trainers reach this host by");
  app.add_option("--name", options.name, "Name of this loader, unique in the run");
  app.add_option("--manifests", options.manifest_folder, "Standalone: folder for manifests of read-only data");
  app.add_option("--cache-dir", options.remote.cache_dir, "Standalone: Folder for blocks of http and s3 data; see operation.remote");
  app.add_option("--cache-bytes", options.remote.cache_bytes, "Standalone: Its size at most")->transform(CLI::AsSizeValue(false));
  app.add_option("--retries", options.remote.http.retries, "Standalone: Repetitions of a request that may succeed later")->check(CLI::Range(0, 100));
  app.add_option("--stall-seconds", options.remote.http.stall_seconds, "Standalone: A download under 1 kB/s for so long has failed")->check(CLI::Range(1, 3600));
  app.add_option("--abandoned-seconds", abandoned_seconds, "Leave when nothing was heard of the coordinator for so long")->check(CLI::Range(1, 86400))->capture_default_str();
  app.add_option("--log-dir", log_dir, "Folder for loader-<name>.jsonl");
  app.add_option("--log-format", log.format, "Of stderr: text or json")->check(CLI::IsMember({"text", "json"}));
  app.add_option("--log-level", log.level, "Least severity that is logged");
  app.add_flag("--end-with-parent", with_parent, "Stop when the process that started this one ends (standalone always does)");
  try {
    app.parse(argc, argv);
    if (standalone && (data->empty() || options.address_file.empty())) throw CLI::ValidationError("--standalone", "needs --data and --address-file");
    if (!standalone && options.coordinator.empty()) throw CLI::ValidationError("tessera-loader", "needs --coordinator HOST:PORT, or --standalone");
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? exit_codes::kDone : exit_codes::kUsage;
  }
  options.abandoned_ms = Millis{abandoned_seconds} * 1000;
  options.stop_fd = stop_signals();
  if ((standalone || with_parent) && !end_with_parent(parent)) return exit_codes::kDone;
  log.name = options.name;
  if (!log_dir.empty()) log.file = log_dir + "/loader-" + (options.name.empty() ? std::to_string(getpid()) : options.name) + ".jsonl";
  if (const Status logging = log_init(log); !logging) {
    std::fprintf(stderr, "tessera-loader: %s\n", logging.error().message.c_str());
    return exit_code_of(logging.error());
  }
  const Result<int> code = standalone ? data::run_standalone(options) : data::run_loader(options);
  if (code) return *code;
  log_error("{}", code.error().message);
  return exit_code_of(code.error());
}
