// The form of our CUDA kernels, so that the same bodies run on a GPU and, thread by thread, in a test on a CPU.
//
// A kernel is a struct of its arguments with
//   static constexpr int kThreads, kPhases;   struct Shared;   struct Local;     (of a block; of a thread)
//   rounds(block)                   how often the phases run
//   phase<p>(place, shared, local)  between two phases all threads of the block wait for each other
//   finish(place, shared, local)    once, after the last round
// No atomics, no warp operations, no branches on timing: the bits of a result depend on the arguments alone. Arithmetic is
// compiled with -fmad=false, so a body's fp32 operations round as they do on the CPU (erf and exp differ in the last bits).
//
// worker/cuda/kernels.cu launches them; tests/unit/cuda/host_executor.h walks through them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "worker/optimizer/elements.h"  // TESSERA_BOTH

#ifdef __CUDACC__
#define TESSERA_UNROLL_4 _Pragma("unroll 4")
#else
#define TESSERA_UNROLL_4 _Pragma("GCC unroll 4")
#endif

namespace tessera::cuda {

struct Place {
  int64_t block;
  int thread;
  int64_t round;
};

// bf16 as 16 bits: the same conversions on both sides, to nearest, ties to even.
struct Half {
  uint16_t bits;
};
TESSERA_BOTH float to_float(float x) { return x; }
TESSERA_BOTH float to_float(Half h) {
  const uint32_t bits = uint32_t(h.bits) << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}
TESSERA_BOTH void put(float& to, float x) { to = x; }
TESSERA_BOTH void put(Half& to, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  to.bits = x != x ? uint16_t(0x7FC0) : uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Two neighbours, moved as one word.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};
template <typename T>
TESSERA_BOTH Pair<T> load_pair(const T* at) {
  return *reinterpret_cast<const Pair<T>*>(at);
}
template <typename T>
TESSERA_BOTH void store_pair(T* at, float first, float second) {
  Pair<T> out;
  put(out.first, first), put(out.second, second);
  *reinterpret_cast<Pair<T>*>(at) = out;
}

// The sum of one value a thread, the same in every thread: 32 partial sums in thread order, then those in order. The
// caller writes lanes[thread] in one phase, calls fold_lanes in the next and read_fold in the one after.
template <int kThreads, typename T>
struct Lanes {
  T each[kThreads];
  T folded[32];
};
template <int kThreads, typename T>
TESSERA_BOTH void fold_lanes(Lanes<kThreads, T>& lanes, int thread) {
  if (thread >= 32) return;
  T sum = lanes.each[thread];
  for (int i = thread + 32; i < kThreads; i += 32) sum += lanes.each[i];
  lanes.folded[thread] = sum;
}
template <int kThreads, typename T>
TESSERA_BOTH T read_fold(const Lanes<kThreads, T>& lanes) {
  T four[4] = {lanes.folded[0], lanes.folded[1], lanes.folded[2], lanes.folded[3]};
  for (int i = 4; i < 32; ++i) four[i % 4] += lanes.folded[i];
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// The body of n calls function(i), each by itself; a thread makes Function::kPerThread of them.
template <typename Function>
struct Each {
  Function function;
  int64_t n;
  static constexpr int kThreads = 256, kPhases = 1;
  static constexpr int64_t kPerThread = Function::kPerThread;
  struct Shared {};
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared&, Local&) const {
TESSERA_UNROLL_4
    for (int64_t k = 0; k < kPerThread; ++k) {
      const int64_t i = (at.block * kPerThread + k) * kThreads + at.thread;
      if (i < n) function(i);
    }
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

}  // namespace tessera::cuda
