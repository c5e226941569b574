#include "worker/cuda/state_tables.h"

#include "common/digest.h"

namespace tessera::cuda {
namespace {

void set_seeds(uint64_t (&to)[2], const std::string& name) {
  const LaneSeeds seeds = lane_seeds(name);
  to[0] = seeds.a, to[1] = seeds.b;
}

}  // namespace

HostTables make_tables(const model::Layout& layout) {
  HostTables out;
  for (const model::Bucket& bucket : layout.buckets) {
    out.first_segment.push_back(int64_t(out.segments.size()));
    out.first_chunk.push_back(int64_t(out.chunks.size()));
    for (int t = bucket.first_tensor; t < bucket.last_tensor; ++t) {
      const model::TensorPlace& place = layout.tensors[size_t(t)];
      Segment segment{place.offset, place.count, {}, place.decayed};
      set_seeds(segment.seeds[kWeights], place.name);
      set_seeds(segment.seeds[kTarget], place.target_name());
      set_seeds(segment.seeds[kExpAvg], "optimizer.exp_avg." + place.name);
      set_seeds(segment.seeds[kExpAvgSq], "optimizer.exp_avg_sq." + place.name);
      set_seeds(segment.seeds[kGradient], "gradient." + place.name);
      for (int64_t first = 0; first < place.count; first += kChunkFloats) out.chunks.push_back({t - bucket.first_tensor, 0, first});
      out.segments.push_back(segment);
    }
  }
  out.first_segment.push_back(int64_t(out.segments.size()));
  out.first_chunk.push_back(int64_t(out.chunks.size()));
  return out;
}

}  // namespace tessera::cuda
