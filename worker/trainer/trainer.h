// The trainer: state, and the step loop of DESIGN section 4. One object per process, on the training thread.
//
//   evaluate | exchange -> vote -> apply -> EMA | next step's context, until the world stops; then seal, wait for the next
//   world, roll forward. `|`: the exchanger's thread communicates while the training thread computes.
// No byte of state changes before the vote fence; the reduced gradient stays untouched until the next step starts, so
// whoever sealed `prepared` can apply the step later.
//
// trainer.cpp: commands and life; world.cpp: how a generation is entered; step.cpp: the step.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/config.h"
#include "worker/collective/collective.h"
#include "worker/model/engine.h"
#include "worker/optimizer/update.h"
#include "worker/trainer/audit.h"
#include "worker/trainer/checkpoint_writer.h"
#include "worker/trainer/control.h"
#include "worker/trainer/exchanger.h"
#include "worker/trainer/fetch.h"
#include "worker/trainer/reduction.h"
#include "worker/trainer/report.h"
#include "worker/trainer/standby.h"
#include "worker/trainer/vote.h"

namespace tessera::trainer {

// Places of a step where a test may hold or end the training thread.
enum class Point {
  kBegin,       // before the first tile
  kBeforeVote,  // the gradient is whole here; no vote has left
  kAfterVote,   // all votes are here and equal; nothing is applied
};

struct TrainerOptions {
  WorkerId worker_id;
  std::string device;
  std::string numerics_class;
  int threads = 1;  // that numerics_class names
  // Tests put a faulty collective in between; empty otherwise.
  std::function<std::unique_ptr<collective::Collective>(std::unique_ptr<collective::Collective>, const proto::WorldStart&, Rank)> wrap_collective;
  std::function<void(Point, Step)> at_point;
  std::function<void(Point, model::State&)> at_state;  // tests: memory that loses a bit
  std::function<void(TileIndex, model::FlatBuffers&)> at_gradient;  // tests: a device that computes wrong
  std::shared_ptr<WarmEngine> warm;  // of a standby; null otherwise
};

class Trainer {
 public:
  Trainer(TrainerOptions options, ControlLink& link, collective::MeshListener& listener, collective::AbortSignal& abort);
  ~Trainer();
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
    std::unique_ptr<Exchanger> exchanger;  // the only one to use collective; the training thread uses mesh while it is idle
    Step stop_after = -1;
    bool final_checkpoint = true;  // the boundary it stops at gets a checkpoint
    Step snapshot_at = -1;         // newest boundary with a snapshot in this generation, or the checkpoint it began with
    int size() const { return int(start.members.size()); }
  };
  // Why the present world ended here; told to the coordinator in WorldFault.
  struct Cause {
    bool digests_differ = false;
    bool bad_checkpoint = false;
    Rank suspect = -1;
  };
  enum class EmaBy {
    kAgreement,  // as operation.ema_distribution says
    kThisRank,   // all of it here: no peers are at hand
  };

  // trainer.cpp
  Status obey(const proto::Payload& command);
  Status set_up(const proto::TrainerWelcome& welcome);
  Status run_world(const proto::WorldStart& start);
  void seal(const proto::WorldStop& stop);
  void fault(const Error& error);
  int leave(const proto::Shutdown& shutdown);
  void phase(proto::Phase phase);
  double lap();  // seconds since the last lap
  void at(Point point);

  // world.cpp
  Result<World> make_world(const proto::WorldStart& start) const;
  Status enter_world(const proto::WorldStart& start);
  void leave_world();
  Status connect();
  Status bring_state();
  Status load_state(const proto::WorldStart& start);
  Status roll_forward();
  Status transfer_state(bool needed);
  Status compare_digests();

  // step.cpp
  Status step();
  Status evaluate();
  Status evaluate_tile(TileIndex tile, bool last);
  void reduce(size_t bucket);
  Status exchange();
  Status audit();  // audit.cpp
  Result<StateDigest> evaluate_again(TileIndex tile);
  Result<Agreement> vote();
  void apply(EmaBy ema);
  void distribute_target(double momentum);
  void await_target();
  void obey_agreement(const Agreement& agreement);
  void snapshot();
  void report_step();

  const TrainerOptions options_;
  ControlLink& link_;
  collective::MeshListener& listener_;
  collective::AbortSignal& abort_;

  proto::TrainerWelcome welcome_;
  FunctionConfig function_;
  std::string function_id_;
  OperationConfig operation_;
  std::unique_ptr<model::Engine> engine_;
  std::unique_ptr<Fetcher> fetcher_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::optional<optimizer::Schedule> schedule_;
  std::optional<model::State> state_;
  std::string lineage_;  // of state_
  collective::SharedArena arena_;  // of all buffers that peers may read
  std::unique_ptr<Reduction> reduction_;  // its whole() is the sum of step facts_.step when prepared_
  model::FlatBuffers audit_gradient_;  // of a tile evaluated again; made when first needed
  StepFacts facts_;              // of that step
  std::shared_ptr<float> bounce_;  // EMA target slices; target_floats
  bool target_on_its_way_ = false;  // the exchanger brings the state's target; nobody else reads or hashes it
  bool applied_is_whole_ = true;    // facts_.applied covers the target
  std::optional<World> world_;
  bool prepared_ = false;
  std::optional<AuditPlan> audit_;  // of this step
  StateDigest audited_;             // this rank's gradient of the audited tile
  std::optional<proto::Sealed> sealed_;  // the last answer, for a coordinator that comes back
  Cause cause_;
  proto::TimeSplit split_;
  double waited_seconds_ = 0;  // for peers, within what the clock takes for computing
  double lap_at_ = 0;
  std::vector<double> recent_seconds_;
};

}  // namespace tessera::trainer
