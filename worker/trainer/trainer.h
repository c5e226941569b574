// The trainer: state, and the step loop of DESIGN section 4. One object per process, on the training thread.
//
//   evaluate -> exchange -> vote -> apply -> EMA, until the world stops; then seal, wait for the next world, roll forward.
// No byte of state changes before the vote fence; the reduced gradient stays untouched until the next step starts, so
// whoever sealed `prepared` can apply the step later.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "common/config.h"
#include "worker/collective/collective.h"
#include "worker/model/engine.h"
#include "worker/optimizer/update.h"
#include "worker/trainer/checkpoint_writer.h"
#include "worker/trainer/control.h"
#include "worker/trainer/fetch.h"
#include "worker/trainer/vote.h"

namespace tessera::trainer {

struct TrainerOptions {
  WorkerId worker_id;
  std::string device;
  std::string numerics_class;
};

class Trainer {
 public:
  Trainer(TrainerOptions options, ControlLink& link, collective::MeshListener& listener, collective::AbortSignal& abort);
  // Runs until told to shut down. Returns the exit code; the reason was logged.
  int run();

 private:
  // One generation's membership and what exists for it only.
  struct World {
    proto::WorldStart start;
    Rank rank = 0;
    TileRange tiles;
    std::unique_ptr<collective::Mesh> mesh;  // null with one rank
    std::unique_ptr<collective::Collective> collective;
    Step stop_after = -1;
    bool final_checkpoint = true;  // the boundary it stops at gets a checkpoint
    int size() const { return int(start.members.size()); }
  };
  struct Evaluated {  // what the ranks tell each other and the ledger about one step
    std::vector<double> tile_losses;
    StateDigest batch;
    double effective_rank = 0;
    int32_t context_length = 0;
  };

  Status set_up(const proto::TrainerWelcome& welcome);
  Status warm_up();
  Status enter_world(const proto::WorldStart& start);
  Status bring_state(const proto::WorldStart& start);
  Status transfer_state();
  Status compare_digests();
  Status run_world();
  Status step();
  Result<Evaluated> evaluate();
  Status exchange();
  Result<Agreement> vote(Evaluated& evaluated, const StateDigest& used);
  Status apply(bool from_vote);
  void distribute_target(float momentum);
  void snapshot_if_due(bool asked);
  proto::StepDone describe_step(const Evaluated& evaluated, const Agreement& agreement, const optimizer::GradientSummary& summary, bool skipped, const StateDigest& used);
  void seal(const std::string& reason);
  void fault(const Error& error);
  void phase(proto::Phase phase);
  double lap();  // seconds since the last lap

  const TrainerOptions options_;
  ControlLink& link_;
  collective::MeshListener& listener_;
  collective::AbortSignal& abort_;

  proto::TrainerWelcome welcome_;
  FunctionConfig function_;
  OperationConfig operation_;
  std::unique_ptr<model::Engine> engine_;
  std::unique_ptr<Fetcher> fetcher_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::optional<optimizer::Schedule> schedule_;
  std::optional<model::State> state_;
  std::vector<model::FlatBuffers> node_buffers_;  // a stack; its lower part holds this rank's maximal nodes
  std::vector<collective::Node> nodes_;
  model::FlatBuffers gradient_;                   // the whole sum of step state_->step when prepared_
  std::vector<float> bounce_;                     // EMA target slices
  std::optional<World> world_;
  bool prepared_ = false;
  bool digests_differ_ = false;
  bool bad_checkpoint_ = false;
  Rank suspect_ = -1;
  proto::TimeSplit split_;
  double lap_at_ = 0;
  std::vector<double> recent_seconds_;
  std::deque<proto::StepDone> last_steps_;  // for the ledger, should rank 0 die with its reports unsent
};

}  // namespace tessera::trainer
