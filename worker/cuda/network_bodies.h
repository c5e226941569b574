// Bodies of the passes' kernels (form: kernel_form.h). T: the inner type of the device's passes, float or Half.
// r rows, d channels, even and at most kMostChannels; all pointers on 16 bytes, rows without gaps.
#pragma once

#include "worker/cuda/kernel_form.h"

namespace tessera::cuda {

constexpr int kRowThreads = 128, kPairs = 8;
constexpr int kMostChannels = 2 * kRowThreads * kPairs;  // 2048; ViT-giant has 1408
constexpr int64_t kRowsPerChunk = 16;                     // rows whose gamma, beta and bias gradients one block sums
constexpr int64_t kColumnsPerBlock = 2 * kRowThreads;
constexpr int64_t kRowsPerSum = 64;

TESSERA_BOTH int64_t up(int64_t n, int64_t k) { return (n + k - 1) / k; }

// sum = residual + addend (either may be null), then LayerNorm over d: out = (sum - mean) rstd gamma + beta, in N.
// mean and variance by two passes over the row in registers. gamma null: no affine (the published target normalisation).
// sum, mean, rstd null: not wanted. A block a row.
template <typename T, typename N>
struct AddNorm {
  const T* addend;
  const float* residual;
  const float *gamma, *beta;
  int64_t d;
  float eps;
  float* sum;
  N* out;
  float *mean, *rstd;

  static constexpr int kThreads = kRowThreads, kPhases = 5;
  struct Shared {
    Lanes<kThreads, float> lanes;
  };
  struct Local {
    float x[2 * kPairs];
    float mean;
  };
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }

  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local& l) const {
    if constexpr (p == 0) s.lanes.each[at.thread] = read(at, l);
    if constexpr (p == 1 || p == 3) fold_lanes(s.lanes, at.thread);
    if constexpr (p == 2) {
      l.mean = read_fold(s.lanes) / float(d);
      float squares = 0;
      for (int k = 0; k < kPairs; ++k)
        if (2 * (at.thread + k * kThreads) < d) {
          const float a = l.x[2 * k] - l.mean, b = l.x[2 * k + 1] - l.mean;
          squares += a * a + b * b;
        }
      s.lanes.each[at.thread] = squares;
    }
    if constexpr (p == 4) write(at, 1.0f / std::sqrt(read_fold(s.lanes) / float(d) + eps), l);
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}

  TESSERA_BOTH float read(const Place& at, Local& l) const {
    float total = 0;
    for (int k = 0; k < kPairs; ++k) {
      const int64_t j = 2 * (at.thread + k * kThreads), i = at.block * d + j;
      if (j >= d) continue;
      float a = 0, b = 0;
      if (addend) {
        const Pair<T> pair = load_pair(addend + i);
        a = to_float(pair.first), b = to_float(pair.second);
      }
      if (residual) {
        const Pair<float> pair = load_pair(residual + i);
        a = addend ? a + pair.first : pair.first, b = addend ? b + pair.second : pair.second;
      }
      if (sum) store_pair(sum + i, a, b);
      l.x[2 * k] = a, l.x[2 * k + 1] = b;
      total += a + b;
    }
    return total;
  }
  TESSERA_BOTH void write(const Place& at, float inverse, const Local& l) const {
    for (int k = 0; k < kPairs; ++k) {
      const int64_t j = 2 * (at.thread + k * kThreads);
      if (j >= d) continue;
      float a = (l.x[2 * k] - l.mean) * inverse, b = (l.x[2 * k + 1] - l.mean) * inverse;
      if (gamma) {
        const Pair<float> g = load_pair(gamma + j), c = load_pair(beta + j);
        a = a * g.first + c.first, b = b * g.second + c.second;
      }
      store_pair(out + at.block * d + j, a, b);
    }
    if (at.thread == 0 && mean) mean[at.block] = l.mean, rstd[at.block] = inverse;
  }
};

// LayerNorm backward plus the skip connection: dx = residual + d(norm)(dy), in fp32 and (half not null) rounded. A block
// takes kRowsPerChunk rows; its threads own columns, so the chunk's sums of dgamma, dbeta and dx (the bias gradient of the
// layer before) need no exchange. partial: [chunks, 3, d]; RowSums finishes it.
template <typename T>
struct NormBackward {
  const float* x;
  const T* dy;
  const float *mean, *rstd, *gamma, *residual;
  int64_t rows, d;
  float* dx;
  Half* half;
  float* partial;

  static constexpr int kThreads = kRowThreads, kPhases = 3;
  struct Shared {
    Lanes<kThreads, float> g, gx;
  };
  struct Local {
    float normed[2 * kPairs], weighted[2 * kPairs];
    float dgamma[2 * kPairs] = {}, dbeta[2 * kPairs] = {}, dsum[2 * kPairs] = {};
  };
  TESSERA_BOTH int64_t rounds(int64_t block) const { return rows - block * kRowsPerChunk < kRowsPerChunk ? rows - block * kRowsPerChunk : kRowsPerChunk; }

  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local& l) const {
    const int64_t row = at.block * kRowsPerChunk + at.round;
    if constexpr (p == 0) read(row, at.thread, s, l);
    if constexpr (p == 1) fold_lanes(s.g, at.thread), fold_lanes(s.gx, at.thread);
    if constexpr (p == 2) write(row, at.thread, read_fold(s.g) / float(d), read_fold(s.gx) / float(d), l);
  }
  TESSERA_BOTH void read(int64_t row, int thread, Shared& s, Local& l) const {
    const float m = mean[row], r = rstd[row];
    float g = 0, gx = 0;
    for (int k = 0; k < kPairs; ++k) {
      const int64_t j = 2 * (thread + k * kThreads), i = row * d + j;
      if (j >= d) continue;
      const Pair<float> xs = load_pair(x + i), gammas = load_pair(gamma + j);
      const Pair<T> grads = load_pair(dy + i);
      for (int e = 0; e < 2; ++e) {
        const float grad = to_float(e ? grads.second : grads.first), normed = ((e ? xs.second : xs.first) - m) * r;
        const float weighted = grad * (e ? gammas.second : gammas.first);
        l.normed[2 * k + e] = normed, l.weighted[2 * k + e] = weighted;
        l.dgamma[2 * k + e] += grad * normed;
        l.dbeta[2 * k + e] += grad;
        g += weighted;
        gx += weighted * normed;
      }
    }
    s.g.each[thread] = g, s.gx.each[thread] = gx;
  }
  TESSERA_BOTH void write(int64_t row, int thread, float mean_g, float mean_gx, Local& l) const {
    const float r = rstd[row];
    for (int k = 0; k < kPairs; ++k) {
      const int64_t j = 2 * (thread + k * kThreads), i = row * d + j;
      if (j >= d) continue;
      float out[2];
      for (int e = 0; e < 2; ++e) out[e] = r * ((l.weighted[2 * k + e] - mean_g) - l.normed[2 * k + e] * mean_gx);
      if (residual) {
        const Pair<float> rest = load_pair(residual + i);
        out[0] = rest.first + out[0], out[1] = rest.second + out[1];
      }
      l.dsum[2 * k] += out[0], l.dsum[2 * k + 1] += out[1];
      store_pair(dx + i, out[0], out[1]);
      if (half) store_pair(half + i, out[0], out[1]);
    }
  }
  TESSERA_BOTH void finish(const Place& at, Shared&, Local& l) const {
    float* to = partial + at.block * 3 * d;
    for (int k = 0; k < kPairs; ++k) {
      const int64_t j = 2 * (at.thread + k * kThreads);
      if (j >= d) continue;
      store_pair(to + j, l.dgamma[2 * k], l.dgamma[2 * k + 1]);
      store_pair(to + d + j, l.dbeta[2 * k], l.dbeta[2 * k + 1]);
      store_pair(to + 2 * d + j, l.dsum[2 * k], l.dsum[2 * k + 1]);
    }
  }
};

// out[c] = the sum of column c over all rows of fp32 partial sums [rows, stride], columns [0, columns): eight groups of
// rows, each in order, then the groups in order. A block of 32 columns.
struct RowSums {
  const float* partial;
  int64_t rows, stride, columns;
  float* out;

  static constexpr int kThreads = 256, kPhases = 2;
  struct Shared {
    float group[8][32];
  };
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local&) const {
    const int lane = at.thread % 32, group = at.thread / 32;
    const int64_t column = at.block * 32 + lane;
    if (column >= columns) return;
    if constexpr (p == 0) {
      float sum = 0;
TESSERA_UNROLL_4
      for (int64_t row = group; row < rows; row += 8) sum += partial[row * stride + column];
      s.group[group][lane] = sum;
    } else if (group == 0) {
      float sum = s.group[0][lane];
      for (int g = 1; g < 8; ++g) sum += s.group[g][lane];
      out[column] = sum;
    }
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

// Rows of a chunk walked by threads that own two columns each: what Walk does with each pair, and the chunk's column sums in
// partial [chunks, d]. Block: chunk * column_blocks + column block.
template <typename Walk>
struct Columns {
  Walk walk;
  int64_t rows, d;
  float* partial;

  static constexpr int kThreads = kRowThreads, kPhases = 1;
  struct Shared {};
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared&, Local&) const {
    const int64_t across = up(d, kColumnsPerBlock), chunk = at.block / across, j = at.block % across * kColumnsPerBlock + 2 * at.thread;
    if (j >= d) return;
    const int64_t end = (chunk + 1) * kRowsPerSum < rows ? (chunk + 1) * kRowsPerSum : rows;
    float first = 0, second = 0;
TESSERA_UNROLL_4
    for (int64_t row = chunk * kRowsPerSum; row < end; ++row) {
      const Pair<float> pair = walk(row, j);
      first += pair.first, second += pair.second;
    }
    store_pair(partial + chunk * d + j, first, second);
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};
// The bias gradient: columns of dy.
template <typename T>
struct ReadPair {
  const T* from;
  int64_t d;
  TESSERA_BOTH Pair<float> operator()(int64_t row, int64_t j) const {
    const Pair<T> pair = load_pair(from + row * d + j);
    return {to_float(pair.first), to_float(pair.second)};
  }
};

TESSERA_BOTH float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }
TESSERA_BOTH float gelu_slope(float x) {
  return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * (0.39894228040143268f * expf(-0.5f * x * x));
}
// GELU backward, with the bias gradient of the layer that made `before` (the rounded gradient is what is summed), and the
// GELU again.
template <typename T>
struct GeluBackwardPair {
  const T *dafter, *before;
  T *dbefore, *after;
  int64_t d;
  TESSERA_BOTH Pair<float> operator()(int64_t row, int64_t j) const {
    const int64_t i = row * d + j;
    const Pair<T> grad = load_pair(dafter + i), x = load_pair(before + i);
    Pair<T> out;
    const float a = to_float(x.first), b = to_float(x.second);
    put(out.first, to_float(grad.first) * gelu_slope(a)), put(out.second, to_float(grad.second) * gelu_slope(b));
    store_pair(after + i, gelu(a), gelu(b));
    *reinterpret_cast<Pair<T>*>(dbefore + i) = out;
    return {to_float(out.first), to_float(out.second)};
  }
};

// Gradients of q, k and v, each [rows, part], into rows [q k v], with the bias gradient of the layer that made them.
template <typename T>
struct PackPair {
  const T* from[3];
  int64_t part;
  T* to;
  TESSERA_BOTH Pair<float> operator()(int64_t row, int64_t j) const {
    const int which = int(j / part);
    const Pair<T> pair = *reinterpret_cast<const Pair<T>*>((which == 0 ? from[0] : which == 1 ? from[1] : from[2]) + row * part + (j - which * part));
    *reinterpret_cast<Pair<T>*>(to + row * 3 * part + j) = pair;
    return {to_float(pair.first), to_float(pair.second)};
  }
};

// The GELU of pair i (Each).
template <typename T>
struct GeluPair {
  static constexpr int64_t kPerThread = 4;
  const T* before;
  T* after;
  TESSERA_BOTH void operator()(int64_t i) const {
    const Pair<T> x = load_pair(before + 2 * i);
    store_pair(after + 2 * i, gelu(to_float(x.first)), gelu(to_float(x.second)));
  }
};

enum class LossKind { kSmoothL1, kL1, kL2 };
// d = prediction - wanted over n floats: the gradient of the mean, and each block's sum of losses in double.
constexpr int64_t kPerLossThread = 16;
struct LossPart {
  LossKind kind;
  const float *prediction, *wanted;
  int64_t n;
  float* gradient;
  double* partial;  // one a block
  static constexpr int kThreads = 256, kPhases = 3;
  struct Shared {
    Lanes<kThreads, double> lanes;
  };
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  TESSERA_BOTH static float value(LossKind kind, float d) {
    const float size = std::fabs(d);
    if (kind == LossKind::kL1) return size;
    if (kind == LossKind::kL2) return d * d;
    return size < 1.0f ? 0.5f * d * d : size - 0.5f;
  }
  TESSERA_BOTH static float slope(LossKind kind, float d) {
    if (kind == LossKind::kL1) return d > 0 ? 1.0f : d < 0 ? -1.0f : d;
    if (kind == LossKind::kL2) return 2.0f * d;
    return d < -1.0f ? -1.0f : d > 1.0f ? 1.0f : d;  // NaN stays NaN
  }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local&) const {
    if constexpr (p == 0) {
      const float scale = 1.0f / float(n);
      double sum = 0;
      for (int64_t k = 0; k < kPerLossThread; ++k) {
        const int64_t i = (at.block * kPerLossThread + k) * kThreads + at.thread;
        if (i >= n) continue;
        const float difference = prediction[i] - wanted[i];
        sum += double(value(kind, difference));
        gradient[i] = slope(kind, difference) * scale;
      }
      s.lanes.each[at.thread] = sum;
    }
    if constexpr (p == 1) fold_lanes(s.lanes, at.thread);
    if constexpr (p == 2)
      if (at.thread == 0) partial[at.block] = read_fold(s.lanes);
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

// The sum of n doubles or 64-bit words, in one block, in a fixed order; `stride` apart, one block for each of the first
// `stride` columns.
template <typename V>
struct SumOfParts {
  const V* parts;
  int64_t n, stride;
  V* out;
  static constexpr int kThreads = 256, kPhases = 3;
  struct Shared {
    Lanes<kThreads, V> lanes;
  };
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared& s, Local&) const {
    if constexpr (p == 0) {
      V sum = 0;
      for (int64_t i = at.thread; i < n; i += kThreads) sum += parts[i * stride + at.block];
      s.lanes.each[at.thread] = sum;
    }
    if constexpr (p == 1) fold_lanes(s.lanes, at.thread);
    if constexpr (p == 2)
      if (at.thread == 0) out[at.block] = read_fold(s.lanes);
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

// u8 NHWC pixels to rows of patches: out [kept, 3 p p] in the order (channel, y, x), (u8 / 255 - mean) / std by the
// table [3][256]. rows null: all patches of all images, else out row i is patch rows[i] of the [b N] (image, patch). A block a
// row.
template <typename T>
struct Patchify {
  const uint8_t* pixels;
  const int64_t* rows;
  const float* table;
  int64_t image_size, patch_size;
  T* out;
  static constexpr int kThreads = 128, kPhases = 1;
  struct Shared {};
  struct Local {};
  TESSERA_BOTH int64_t rounds(int64_t) const { return 1; }
  template <int p>
  TESSERA_BOTH void phase(const Place& at, Shared&, Local&) const {
    const int64_t grid = image_size / patch_size, area = patch_size * patch_size, width = 3 * area, row = rows ? rows[at.block] : at.block;
    const int64_t image = row / (grid * grid), y0 = row / grid % grid * patch_size, x0 = row % grid * patch_size;
    const uint8_t* corner = pixels + ((image * image_size + y0) * image_size + x0) * 3;
    for (int64_t j = at.thread; j < width; j += kThreads) {
      const int64_t c = j / area, y = j % area / patch_size, x = j % patch_size;
      put(out[at.block * width + j], table[c * 256 + corner[(y * image_size + x) * 3 + c]]);
    }
  }
  TESSERA_BOTH void finish(const Place&, Shared&, Local&) const {}
};

}  // namespace tessera::cuda
