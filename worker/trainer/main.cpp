// tessera-trainer: one device's share of a run. Started and watched by tessera-worker.
#include <CLI/CLI.hpp>
#include <ATen/Parallel.h>
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <malloc.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/log.h"
#include "common/version.h"
#include "worker/cuda/install.h"
#include "worker/model/backend.h"
#include "worker/model/numerics.h"
#include "worker/trainer/standby.h"
#include "worker/trainer/trainer.h"

namespace tessera::trainer {
namespace {

struct Arguments {
  std::string coordinator, worker_id, device = "cpu", advertise = "127.0.0.1", log_dir;
  int threads = 1;
  bool standby = false;
};

// Waits for the order and becomes that worker. nullopt: it is not needed.
Result<std::optional<WarmEngine>> become_worker(Arguments& a) {
  prctl(PR_SET_NAME, "tessera-standby");  // so that who looks for trainers does not take it for one
  if (a.device == "cpu") (void)model::numerics_class(a.device, a.threads);  // makes its choices now
  TESSERA_ASSIGN(std::optional<Standby> standby, stand_by(STDIN_FILENO));
  if (!standby) return std::nullopt;
  prctl(PR_SET_NAME, "tessera-trainer");
  a.worker_id = standby->order.worker_id, a.device = standby->order.device;
  ::setenv("TESSERA_INCARNATION", (a.worker_id + "=" + std::to_string(standby->order.incarnation)).c_str(), 1);
  return std::move(standby->warm);
}

Status open_log(const Arguments& a) {
  std::string file_name = a.worker_id;
  std::replace(file_name.begin(), file_name.end(), '/', '-');
  return log_init({"trainer", a.worker_id, a.log_dir.empty() ? "" : a.log_dir + "/trainer-" + file_name + ".jsonl"});
}

Result<int> work(const Arguments& a, std::shared_ptr<WarmEngine> warm) {
  TESSERA_TRY(model::prepare_device(a.device, nullptr));
  utsname host{};
  uname(&host);
  TESSERA_ASSIGN(const auto listener, collective::MeshListener::open(a.advertise));
  collective::AbortSignal abort;
  ControlLink::Options options;
  options.coordinator = a.coordinator;
  options.hello = {a.worker_id, host.nodename, {kVersion, build_commit(), kProtocolVersion}, getpid(), a.device, model::numerics_class(a.device, a.threads),
                   a.advertise + ":" + std::to_string(listener->port()), 0, {}, -1};
  TESSERA_ASSIGN(const auto link, ControlLink::start(options, abort));
  log_info("numerics class {}", options.hello.numerics_class);
  TrainerOptions trainer_options{a.worker_id, a.device, options.hello.numerics_class, a.threads, {}, {}, {}, {}, std::move(warm)};
  Trainer trainer(std::move(trainer_options), *link, *listener, abort);
  return trainer.run();
}

int run(Arguments a) {
  at::set_num_threads(a.threads);
  std::shared_ptr<WarmEngine> warm;
  if (a.standby) {
    auto order = become_worker(a);
    if (!order) return std::cerr << "tessera-trainer: " << order.error().message << "\n", exit_code_of(order.error());
    if (!*order) return exit_codes::kDone;
    warm = std::make_shared<WarmEngine>(std::move(**order));
  }
  if (auto status = open_log(a); !status) return std::cerr << status.error().message << "\n", exit_code_of(status.error());
  if (a.standby) log_info("a standby takes the place of worker {}", a.worker_id);
  auto code = work(a, std::move(warm));
  if (code) return *code;
  log_error("{}", code.error().message);
  return exit_code_of(code.error());
}

}  // namespace
}  // namespace tessera::trainer

int main(int argc, char** argv) {
  using namespace tessera;
  model::pin_library_environment();
  cuda::install_devices();
  // Activations of a step are freed and taken again at once: keep them in the heap instead of returning them to the system.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGINT, SIG_IGN);  // a terminal's Ctrl-C is the coordinator's business: it plans the stop

  CLI::App app{"One device's share of a Tessera run; started by tessera-worker"};
  trainer::Arguments a;
  app.add_option("--coordinator", a.coordinator, "HOST:PORT of the coordinator")->required();
  auto* const id = app.add_option("--worker-id", a.worker_id, "stable id: node/slot");
  app.add_flag("--standby", a.standby, "warm up without a name and wait on standard input for the order to be a worker (worker/trainer/standby.h)")->excludes(id);
  app.add_option("--device", a.device, "cpu or cuda:N");
  app.add_option("--advertise", a.advertise, "address that other trainers reach this one by");
  app.add_option("--log-dir", a.log_dir, "folder for the JSON log");
  app.add_option("--threads", a.threads, "compute threads; operation.compute_threads of the run")->check(CLI::Range(1, 1024));
  try {
    app.parse(argc, argv);
    if (!a.standby && a.worker_id.empty()) throw CLI::RequiredError("--worker-id");
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : exit_codes::kUsage;
  }
  return trainer::run(std::move(a));
}
