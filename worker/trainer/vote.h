// The vote fence (DESIGN section 4): before a step is applied every rank tells every other what it holds, over the mesh.
// Pure comparison here; the trainer moves the bytes.
#pragma once

#include <string>
#include <vector>

#include "common/digest.h"
#include "common/ids.h"
#include "common/result.h"

namespace tessera::trainer {

// Fixed layout on the wire (same build on both ends: the mesh's handshake and the coordinator's version check see to it).
struct Vote {
  uint64_t term = 0, number = 0;
  int64_t step = 0;
  StateDigest state;     // of state[step], every role, taken after the step's last backward
  StateDigest applied;   // the same, taken before its first forward; zero unless the world has two ranks (see tally)
  StateDigest gradient;  // of the reduced gradient
  StateDigest batch;     // sum of the tile digests of the rank's own tiles
  int64_t stop_after = -1;  // rank 0's word: stop once state[stop_after] is reached
  uint64_t checkpoint = 0;  // rank 0's word: snapshot at the next boundary
  int64_t acknowledged = -1;  // rank 0's word: the ledger holds every step up to this one
};

struct Agreement {
  StateDigest batch;  // of the whole step
  int64_t stop_after = -1;
  bool checkpoint = false;
  int64_t acknowledged = -1;
};

// What the votes of all ranks, in rank order, decide. No agreement: some vote is of another generation or step, or
// digests differ; the message names the ranks and what differs ("rank 2 holds other weights of step 41 than ranks 0, 1").
// suspect: the rank in the minority, -1 when there is none. Two ranks have no minority: there the one whose state is no
// longer what it was before the step is named; a state that was wrong already when the step began names nobody.
struct Disagreement {
  std::string reason;
  Rank suspect = -1;
};
tl::expected<Agreement, Disagreement> tally(const std::vector<Vote>& votes);

}  // namespace tessera::trainer
