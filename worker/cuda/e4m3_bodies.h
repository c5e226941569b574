// Bodies that turn a tensor into 8-bit floats with one scale (form: kernel_form.h; arithmetic: worker/model/e4m3.h). Three
// launches: partial maxima, the scale, the numbers.
#pragma once

#include "worker/cuda/kernel_form.h"
#include "worker/model/e4m3.h"

namespace tessera::cuda {

// partial[block] = the largest magnitude of every blocks-th stretch of pairs. n even; `blocks`: of the launch.
template <typename T>
struct LargestPart {
  const T* from;
  int64_t n, blocks;
  uint32_t* partial;

  static constexpr int kThreads = 256, kPhases = 3;
  struct Shared {
    uint32_t each[kThreads];
  };
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local&) const {
    if constexpr (p == 0) {
      uint32_t most = 0;
TESSERA_UNROLL_4
      for (int64_t i = 2 * (at.block * kThreads + at.thread); i < n; i += 2 * blocks * kThreads) {
        const Pair<T> pair = load_pair(from + i);
        const uint32_t a = model::e4m3::magnitude(to_float(pair.first)), b = model::e4m3::magnitude(to_float(pair.second));
        const uint32_t larger = a > b ? a : b;
        most = larger > most ? larger : most;
      }
      s.each[at.thread] = most;
    }
    if constexpr (p == 1)
      if (at.thread < 32)
        for (int i = at.thread + 32; i < kThreads; i += 32) s.each[at.thread] = s.each[i] > s.each[at.thread] ? s.each[i] : s.each[at.thread];
    if constexpr (p == 2)
      if (at.thread == 0) {
        for (int i = 1; i < 32; ++i) s.each[0] = s.each[i] > s.each[0] ? s.each[i] : s.each[0];
        partial[at.block] = s.each[0];
      }
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

// The scale of the whole tensor. One block.
struct ScaleOfParts {
  const uint32_t* partial;
  int64_t n;
  float* scale;

  static constexpr int kThreads = 256, kPhases = 2;
  struct Shared {
    uint32_t each[kThreads];
  };
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local&) const {
    if constexpr (p == 0) {
      uint32_t most = 0;
      for (int64_t i = at.thread; i < n; i += kThreads) most = partial[i] > most ? partial[i] : most;
      s.each[at.thread] = most;
    }
    if constexpr (p == 1)
      if (at.thread == 0) {
        uint32_t most = 0;
        for (int i = 0; i < kThreads; ++i) most = s.each[i] > most ? s.each[i] : most;
        *scale = model::e4m3::scale_of(most);
      }
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

// Numbers 4 i to 4 i + 3 (Each), over the scale, written as one word.
template <typename T>
struct ToE4m3 {
  const T* from;
  const float* scale;
  uint8_t* to;
  static constexpr int64_t kPerThread = 4;
  TESSERA_BOTH void operator()(int64_t i) const {
    const float inverse = 1.0f / *scale;
    uint32_t word = 0;
    for (int k = 0; k < 4; k += 2) {
      const Pair<T> pair = load_pair(from + 4 * i + k);
      word |= uint32_t(model::e4m3::encoded(to_float(pair.first) * inverse)) << (8 * k);
      word |= uint32_t(model::e4m3::encoded(to_float(pair.second) * inverse)) << (8 * k + 8);
    }
    *reinterpret_cast<uint32_t*>(to + 4 * i) = word;
  }
};

}  // namespace tessera::cuda
