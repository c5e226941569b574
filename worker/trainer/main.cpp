// tessera-trainer: one device's share of a run. Started and watched by tessera-worker.
#include <CLI/CLI.hpp>
#include <ATen/Parallel.h>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <malloc.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/log.h"
#include "common/version.h"
#include "worker/model/numerics.h"
#include "worker/trainer/trainer.h"

int main(int argc, char** argv) {
  using namespace tessera;
  using trainer::ControlLink;
  model::pin_library_environment();
  // Activations of a step are freed and taken again at once: keep them in the heap instead of returning them to the system.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGINT, SIG_IGN);  // a terminal's Ctrl-C is the coordinator's business: it plans the stop

  CLI::App app{"One device's share of a Tessera run; started by tessera-worker"};
  std::string coordinator, worker_id, device = "cpu", advertise = "127.0.0.1", log_dir;
  int threads = 1;
  app.add_option("--coordinator", coordinator, "HOST:PORT of the coordinator")->required();
  app.add_option("--worker-id", worker_id, "stable id: node/slot")->required();
  app.add_option("--device", device, "cpu or cuda:N");
  app.add_option("--advertise", advertise, "address that other trainers reach this one by");
  app.add_option("--log-dir", log_dir, "folder for the JSON log");
  app.add_option("--threads", threads, "compute threads; operation.compute_threads of the run")->check(CLI::Range(1, 1024));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : exit_codes::kUsage;
  }
  std::string file_name = worker_id;
  for (char& c : file_name)
    if (c == '/') c = '-';
  if (auto status = log_init({"trainer", worker_id, log_dir.empty() ? "" : log_dir + "/trainer-" + file_name + ".jsonl"}); !status) {
    std::cerr << status.error().message << "\n";
    return exit_code_of(status.error());
  }
  at::set_num_threads(threads);

  utsname host{};
  uname(&host);
  auto listener = collective::MeshListener::open(advertise);
  if (!listener) {
    log_error("{}", listener.error().message);
    return exit_code_of(listener.error());
  }
  collective::AbortSignal abort;
  ControlLink::Options options;
  options.coordinator = coordinator;
  options.hello = {worker_id, host.nodename, {kVersion, build_commit(), kProtocolVersion}, getpid(), device, model::numerics_class(device, threads),
                   advertise + ":" + std::to_string((*listener)->port()), 0, {}, -1};
  auto link = ControlLink::start(options, abort);
  if (!link) {
    log_error("{}", link.error().message);
    return exit_code_of(link.error());
  }
  trainer::Trainer trainer({worker_id, device, options.hello.numerics_class, threads, {}, {}}, **link, **listener, abort);
  const int code = trainer.run();
  return code;
}
