#include "worker/trainer/trainer.h"

#include <ATen/Parallel.h>
#include <algorithm>

#include "common/block_size.h"
#include "common/clock.h"
#include "common/log.h"
#include "worker/model/backend.h"

namespace tessera::trainer {

Trainer::Trainer(TrainerOptions options, ControlLink& link, collective::MeshListener& listener, collective::AbortSignal& abort)
    : options_(std::move(options)), link_(link), listener_(listener), abort_(abort) {}

// The link lives on and may call until then.
Trainer::~Trainer() {
  link_.on_assignment({});
  link_.on_checkpoint({});
  leave_world();
}

int Trainer::run() {
  for (;;) {
    if (const auto shutdown = link_.shutdown()) return leave(*shutdown);
    const auto command = link_.next(200);
    if (!command) continue;
    Status done;
    try {
      done = obey(*command);
    } catch (const std::exception& e) {  // LibTorch throws: out of memory, a broken device
      done = fail(ErrorCode::kInternal, "[trainer] step " + std::to_string(state_ ? state_->step : -1) + ": " + e.what());
    }
    if (!done) {
      log_error("{}", done.error().message);
      link_.send(proto::Goodbye{done.error().message, exit_code_of(done.error())});
      link_.flush(1000);
      return exit_code_of(done.error());
    }
  }
}

// Errors end the process; those of a generation end in fault().
Status Trainer::obey(const proto::Payload& command) {
  if (const auto* welcome = std::get_if<proto::TrainerWelcome>(&command)) return set_up(*welcome);
  if (const auto* stop = std::get_if<proto::WorldStop>(&command)) seal(*stop);
  if (const auto* start = std::get_if<proto::WorldStart>(&command)) {
    if (!engine_) return fail(ErrorCode::kInternal, "[trainer] a world starts before this trainer was welcomed");
    Status done = run_world(*start);
    if (!done && done.error().code != ErrorCode::kRebuildWorld) return done;
    if (!done) fault(done.error());
  }
  return {};
}

int Trainer::leave(const proto::Shutdown& shutdown) {
  if (writer_) writer_->wait_idle();
  link_.flush(2000);
  if (shutdown.exit_code == 0) log_info("done: {}", shutdown.reason);
  else log_error("stopping with exit code {}: {}", shutdown.exit_code, shutdown.reason);
  return shutdown.exit_code;
}

Status Trainer::set_up(const proto::TrainerWelcome& welcome) {
  if (engine_) {  // a restarted coordinator welcomes us again
    if (!world_ && sealed_) link_.send(*sealed_);  // the answer may have gone down with the one before
    if (!world_) link_.send(proto::TrainerReady{});
    return {};
  }
  welcome_ = welcome;
  TESSERA_ASSIGN(function_, parse_function(welcome.function_yaml));
  function_id_ = to_hex(function_id(function_));
  TESSERA_ASSIGN(operation_, parse_operation(welcome.operation_yaml));
  if (operation_.compute_threads != options_.threads)
    return fail(ErrorCode::kFixConfig, "[trainer] started with --threads " + std::to_string(options_.threads) + ", but operation.compute_threads is " + std::to_string(operation_.compute_threads) +
                                           ": the count is part of the numerics class; start the trainer with --threads " + std::to_string(operation_.compute_threads));
  at::set_num_threads(options_.threads);
  if (options_.warm && options_.warm->engine && options_.warm->function_yaml == welcome.function_yaml && options_.warm->device == options_.device) {
    engine_ = std::move(options_.warm->engine);
  } else {
    link_.report({}, -1, -1, proto::Phase::kWarmUp);
    TESSERA_TRY(model::prepare_device(options_.device, &function_));
    TESSERA_ASSIGN(engine_, warm_engine(function_, options_.device));
  }
  const auto layout = model::Layout::make(function_);
  TESSERA_ASSIGN(reduction_, Reduction::make(function_, layout, arena_, options_.device));
  if (!model::is_cuda(options_.device)) bounce_ = std::static_pointer_cast<float>(arena_.allocate(layout.target_floats * int64_t(sizeof(float))));
  schedule_.emplace(function_, RunLength{welcome.steps_per_epoch, welcome.total_steps, welcome.warmup_steps});
  fetcher_ = std::make_unique<Fetcher>(function_, operation_.host_prefetch_bytes, options_.worker_id, operation_.transport);
  link_.on_assignment([this](const proto::ShardAssignment& assignment) { fetcher_->set_loaders(assignment); });
  writer_ = std::make_unique<CheckpointWriter>(welcome.checkpoint_root, [this](proto::Payload payload) { link_.send(std::move(payload)); });
  link_.on_checkpoint([this](const proto::Payload& payload) {
    if (const auto* published = std::get_if<proto::CheckpointPublished>(&payload)) writer_->release(published->step);
    if (const auto* share = std::get_if<proto::WriteShare>(&payload)) writer_->write_share(*share);
  });
  link_.report({}, -1, -1, proto::Phase::kReady);
  link_.send(proto::TrainerReady{});
  return {};
}

Status Trainer::run_world(const proto::WorldStart& start) {
  cause_ = {};
  TESSERA_TRY(enter_world(start));
  if (!world_) return {};
  while (state_->step < world_->stop_after) {
    if (abort_.raised()) return fail(ErrorCode::kRebuildWorld, "aborted");
    TESSERA_TRY(step());
  }
  // Planned end: the boundary that all agreed on. Nothing is in flight; its checkpoint is written before we say so.
  await_target();
  if (world_->final_checkpoint && state_->step > 0) {
    snapshot();
    writer_->wait_idle();
  }
  phase(proto::Phase::kFinished);
  sealed_ = {start.generation, state_->step, false, state_->digest(), {}};
  leave_world();
  link_.set_position({}, state_->step);
  link_.send(*sealed_);
  return {};
}

// Never votes or applies in the generation again; says what it holds.
void Trainer::seal(const proto::WorldStop& stop) {
  log_info("generation {} stopped: {}", to_string(stop.generation), stop.reason);
  leave_world();
  proto::Sealed sealed;
  sealed.generation = stop.generation;
  sealed.applied = state_ ? state_->step : -1;
  sealed.prepared = state_ && prepared_;
  if (state_) sealed.state_digest = state_->digest();
  if (sealed.prepared) sealed.gradient_digest = facts_.gradient;
  link_.set_position({}, sealed.applied);
  link_.report(stop.generation, -1, sealed.applied, proto::Phase::kSealed);
  link_.send_kept();  // rank 0 may be gone with its reports unsent
  sealed_ = sealed;
  link_.send(sealed);
}

// The world broke under us: tell the coordinator, unless it was the one who stopped it, then wait for its WorldStop. The
// mesh stays open until then, so that peers name the rank that is gone, not the first one that noticed.
void Trainer::fault(const Error& error) {
  if (!world_ || abort_.raised()) return;
  log_warning("generation {}: {}", to_string(world_->start.generation), error.message);
  Rank suspect = cause_.suspect;
  if (suspect < 0 && world_->collective) suspect = world_->collective->suspect();
  if (suspect < 0 && world_->mesh) suspect = world_->mesh->suspect();
  link_.send(proto::WorldFault{world_->start.generation, state_ ? state_->step : -1, error.message, suspect, cause_.digests_differ, cause_.bad_checkpoint});
  phase(proto::Phase::kSealed);
}

void Trainer::phase(proto::Phase phase) {
  link_.report(world_ ? world_->start.generation : Generation{}, world_ ? world_->rank : -1, state_ ? state_->step : -1, phase);
}

void Trainer::at(Point point) {
  if (options_.at_point) options_.at_point(point, state_->step);
  if (options_.at_state) options_.at_state(point, *state_);
}

double Trainer::lap() {
  const double now = monotonic_seconds(), seconds = now - lap_at_;
  lap_at_ = now;
  return seconds;
}

}  // namespace tessera::trainer
