// What a trainer may obey, and how it enters a generation: the trainer's side of the membership protocol, without
// sockets, threads or tensors. Pure.
#pragma once

#include <string>

#include "common/result.h"
#include "proto/messages.h"

namespace tessera::trainer {

// Which commands are still meant for us. Terms only grow: a coordinator that was replaced is not obeyed again. A sealed
// generation is never entered, whatever order its messages arrive in.
struct Fence {
  uint64_t highest_term = 0;
  Generation started;  // of the newest WorldStart obeyed
  Generation sealed;   // of the newest WorldStop obeyed

  // Each notes the command when it admits it.
  bool admit_start(const Generation& generation);
  bool admit_stop(const Generation& generation);
  bool admit_directive(const Generation& generation) const;
};

// What this trainer holds when it is told to begin a generation.
struct Holding {
  bool has_state = false;
  Step applied = -1;      // state[applied] is whole here
  bool prepared = false;  // so is the gradient of step `applied`
  std::string lineage;
};

enum class Entry {
  kInitial,      // make state[0] from the seed
  kLoad,         // read the checkpoint
  kKeep,         // we hold state[start_step]
  kRollForward,  // apply the step that we hold prepared, then as kKeep
  kReceive,      // get the state from the source rank
};

// How the rank brings itself to state[start_step]. Error kRebuildWorld when the command cannot be met: the source of the
// state is this rank and it does not hold it, there is no source, or an initial state is asked for at a later step.
Result<Entry> plan_entry(const proto::WorldStart& start, Rank rank, const Holding& holding);

}  // namespace tessera::trainer
