// Bodies of the update's kernels (form: kernel_form.h) over one bucket: AdamW, EMA, casts and digests in one pass, and what
// is known of a gradient. A block takes one Chunk. Every element is computed by worker/optimizer/elements.h, the lines that
// the CPU compiles; digests are sums of integers, so neither order nor slicing changes them.
#pragma once

#include "worker/cuda/kernel_form.h"

namespace tessera::cuda {

// The roles whose elements a digest names (worker/model/state.cpp).
enum Role : int { kWeights, kTarget, kExpAvg, kExpAvgSq, kGradient, kRoles };

// One tensor within its bucket.
struct Segment {
  int64_t offset, count;  // floats
  uint64_t seeds[kRoles][2];
  int decayed;
};
constexpr int64_t kChunkFloats = 4096;
// Up to kChunkFloats of one tensor, from its element `first`.
struct Chunk {
  int32_t segment;
  int32_t pad;
  int64_t first;
};
struct BucketTable {
  const Segment* segments;
  const Chunk* chunks;
  int64_t chunk_count;
};

TESSERA_BOTH uint64_t mix(uint64_t z) {  // common/digest.h: mix64, for both sides
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
struct LaneSums {
  uint64_t a = 0, b = 0;
};
TESSERA_BOTH void digest_element(LaneSums& sums, const uint64_t (&seeds)[2], int64_t index, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint64_t word = (uint64_t(index) << 32) | bits;
  sums.a += mix(seeds[0] + word);
  sums.b += mix(seeds[1] + word);
}

// Calls f(index within the tensor, index within the bucket) for the block's elements of this thread.
template <int kThreads, typename F>
TESSERA_BOTH void each_of_chunk(const BucketTable& table, const Place& at, const Segment*& segment, const F& f) {
  const Chunk chunk = table.chunks[at.block];
  segment = table.segments + chunk.segment;
  const int64_t end = chunk.first + kChunkFloats < segment->count ? chunk.first + kChunkFloats : segment->count;
TESSERA_UNROLL_4
  for (int64_t i = chunk.first + at.thread; i < end; i += kThreads) f(i, segment->offset + i);
}

// Both lanes of a block's digest into parts[2 * block].
template <int kThreads>
struct LaneFold {
  Lanes<kThreads, uint64_t> a, b;
  TESSERA_BOTH void put(int thread, const LaneSums& sums) { a.each[thread] = sums.a, b.each[thread] = sums.b; }
  TESSERA_BOTH void fold(int thread) { fold_lanes(a, thread), fold_lanes(b, thread); }
  TESSERA_BOTH void write(int thread, int64_t block, uint64_t* parts) const {
    if (thread == 0) parts[2 * block] = read_fold(a), parts[2 * block + 1] = read_fold(b);
  }
};

// AdamW on every element; with a target: T = keep T + rest theta. Halves, where not null, are the new values rounded. parts,
// where not null: the digest of what was written, all roles together. (Training does not ask for it: what is voted is read
// from memory after its use, docs/decisions/0009.)
struct Update {
  BucketTable table;
  optimizer::kernels::AdamW decayed, undecayed;
  float keep, rest;
  const float* gradient;
  float *weights, *exp_avg, *exp_avg_sq;
  float* target;  // null: a predictor's bucket, or the target is averaged by somebody else
  Half *weights_half, *target_half;
  uint64_t* parts;  // [chunks, 2] or null

  static constexpr int kThreads = 256, kPhases = 3;
  using Shared = LaneFold<kThreads>;
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local&) const {
    if constexpr (p == 0) {
      LaneSums sums;
      const Segment* segment = nullptr;
      each_of_chunk<kThreads>(table, at, segment, [&](int64_t i, int64_t place) {
        float p_ = weights[place], m = exp_avg[place], v = exp_avg_sq[place];
        optimizer::kernels::adamw_element(gradient[place], p_, m, v, segment->decayed ? decayed : undecayed);
        weights[place] = p_, exp_avg[place] = m, exp_avg_sq[place] = v;
        if (weights_half) put(weights_half[place], p_);
        if (parts) digest_element(sums, segment->seeds[kWeights], i, p_), digest_element(sums, segment->seeds[kExpAvg], i, m), digest_element(sums, segment->seeds[kExpAvgSq], i, v);
        if (!target) return;
        const float averaged = optimizer::kernels::ema_element(target[place], p_, keep, rest);
        target[place] = averaged;
        if (target_half) put(target_half[place], averaged);
        if (parts) digest_element(sums, segment->seeds[kTarget], i, averaged);
      });
      s.put(at.thread, sums);
    }
    if constexpr (p == 1)
      if (parts) s.fold(at.thread);
    if constexpr (p == 2)
      if (parts) s.write(at.thread, at.block, parts);
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

// The digest of one role's buffer; with squares not null also each block's sum of squares in double (NaN or Inf where an
// element is).
struct Examine {
  BucketTable table;
  Role role;
  const float* values;
  uint64_t* parts;  // [chunks, 2]
  double* squares;  // [chunks] or null

  static constexpr int kThreads = 256, kPhases = 3;
  struct Shared {
    LaneFold<kThreads> digest;
    Lanes<kThreads, double> squares;
  };
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local&) const {
    if constexpr (p == 0) {
      LaneSums sums;
      double total = 0;
      const Segment* segment = nullptr;
      each_of_chunk<kThreads>(table, at, segment, [&](int64_t i, int64_t place) {
        const float value = values[place];
        digest_element(sums, segment->seeds[role], i, value);
        total += double(value) * double(value);
      });
      s.digest.put(at.thread, sums);
      s.squares.each[at.thread] = total;
    }
    if constexpr (p == 1) s.digest.fold(at.thread), fold_lanes(s.squares, at.thread);
    if constexpr (p == 2) {
      s.digest.write(at.thread, at.block, parts);
      if (at.thread == 0 && squares) squares[at.block] = read_fold(s.squares);
    }
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

// out = keep target + rest weights.
struct Average {
  static constexpr int64_t kPerThread = 8;
  const float *target, *weights;
  float keep, rest;
  float* out;
  TESSERA_BOTH void operator()(int64_t i) const { out[i] = optimizer::kernels::ema_element(target[i], weights[i], keep, rest); }
};
struct Round {
  static constexpr int64_t kPerThread = 8;
  const float* from;
  Half* to;
  TESSERA_BOTH void operator()(int64_t i) const { put(to[i], from[i]); }
};

}  // namespace tessera::cuda
