// Where each tensor of a layout is in its bucket, with its digests' seeds, cut into chunks for the update's kernels: on the
// device, made once per layout. Host part pure (tests walk it on the CPU).
#pragma once

#include <vector>

#include "worker/cuda/update_bodies.h"
#include "worker/model/layout.h"

namespace tessera::cuda {

struct HostTables {
  std::vector<Segment> segments;             // one a tensor, in the layout's order
  std::vector<Chunk> chunks;                 // in bucket order; segment: within its bucket
  std::vector<int64_t> first_segment, first_chunk;  // by bucket, and one past the end
};
HostTables make_tables(const model::Layout& layout);

}  // namespace tessera::cuda
