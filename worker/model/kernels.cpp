#include "worker/model/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/clones.h"

namespace tessera::model::kernels {
namespace {

constexpr int kLanes = 16;

inline float fold(const float (&lanes)[kLanes]) {
  float eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

}  // namespace

TESSERA_CLONES
void layer_norm_backward_chunks(const LayerNormBackward& a, int64_t first, int64_t last) {
  const int64_t d = a.d, whole = d / kLanes * kLanes;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    float* __restrict dgamma = a.scratch + chunk * 2 * d;
    float* __restrict dbeta = dgamma + d;
    std::memset(dgamma, 0, size_t(2 * d) * sizeof(float));
    const int64_t row_end = std::min(a.rows, (chunk + 1) * kRowsPerChunk);
    for (int64_t row = chunk * kRowsPerChunk; row < row_end; ++row) {
      const float* __restrict x = a.x + row * d;
      const float* __restrict dy = a.dy + row * d;
      const float* __restrict gamma = a.gamma;
      const float mean = a.mean[row], rstd = a.rstd[row];
      float sum_g[kLanes] = {}, sum_gx[kLanes] = {};
      for (int64_t j = 0; j < whole; j += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const float normed = (x[j + lane] - mean) * rstd, grad = dy[j + lane];
          const float weighted = grad * gamma[j + lane];
          dgamma[j + lane] += grad * normed;
          dbeta[j + lane] += grad;
          sum_g[lane] += weighted;
          sum_gx[lane] += weighted * normed;
        }
      }
      for (int64_t j = whole; j < d; ++j) {
        const float normed = (x[j] - mean) * rstd, weighted = dy[j] * gamma[j];
        dgamma[j] += dy[j] * normed;
        dbeta[j] += dy[j];
        sum_g[j - whole] += weighted;
        sum_gx[j - whole] += weighted * normed;
      }
      const float mean_g = fold(sum_g) / float(d), mean_gx = fold(sum_gx) / float(d);
      float* dx = a.dx + row * d;
      const float* residual = a.residual ? a.residual + row * d : nullptr;
      if (residual) {
        for (int64_t j = 0; j < d; ++j) {
          const float normed = (x[j] - mean) * rstd;
          dx[j] = residual[j] + rstd * ((dy[j] * gamma[j] - mean_g) - normed * mean_gx);
        }
      } else {
        for (int64_t j = 0; j < d; ++j) {
          const float normed = (x[j] - mean) * rstd;
          dx[j] = rstd * ((dy[j] * gamma[j] - mean_g) - normed * mean_gx);
        }
      }
    }
  }
}

TESSERA_CLONES
void layer_norm_backward_finish(const LayerNormBackward& a) {
  std::memset(a.dgamma, 0, size_t(a.d) * sizeof(float));
  std::memset(a.dbeta, 0, size_t(a.d) * sizeof(float));
  for (int64_t chunk = 0; chunk < chunk_count(a.rows); ++chunk) {
    const float* part = a.scratch + chunk * 2 * a.d;
    for (int64_t j = 0; j < a.d; ++j) a.dgamma[j] += part[j];
    for (int64_t j = 0; j < a.d; ++j) a.dbeta[j] += part[a.d + j];
  }
}

namespace {

template <typename Value, typename Slope>
inline double chunked_loss(const float* prediction, const float* target, int64_t n, float* gradient, Value value, Slope slope) {
  const float scale = 1.0f / float(n);
  double total = 0;
  for (int64_t i = 0; i < n; i += 256) {
    float lanes[kLanes] = {};
    const int64_t end = std::min(n, i + 256);
    for (int64_t j = i; j < end; ++j) {
      const float difference = prediction[j] - target[j];
      lanes[(j - i) % kLanes] += value(difference);
      gradient[j] = slope(difference) * scale;
    }
    total += double(fold(lanes));
  }
  return total;
}

}  // namespace

double loss(Loss kind, const float* prediction, const float* target, int64_t n, float* gradient) {
  const auto sign = [](float d) { return d > 0 ? 1.0f : d < 0 ? -1.0f : d; };
  if (kind == Loss::kL1)
    return chunked_loss(prediction, target, n, gradient, [](float d) { return std::fabs(d); }, sign);
  if (kind == Loss::kL2)
    return chunked_loss(prediction, target, n, gradient, [](float d) { return d * d; }, [](float d) { return 2.0f * d; });
  const auto value = [](float d) { return std::fabs(d) < 1.0f ? 0.5f * d * d : std::fabs(d) - 0.5f; };
  const auto slope = [](float d) { return std::min(std::max(d, -1.0f), 1.0f); };  // NaN stays NaN
  return chunked_loss(prediction, target, n, gradient, value, slope);
}

void patchify(const uint8_t* image, int64_t image_size, int64_t patch_size, const float mean[3], const float std[3], float* out) {
  float table[3][256];
  for (int c = 0; c < 3; ++c)
    for (int v = 0; v < 256; ++v) table[c][v] = (float(v) / 255.0f - mean[c]) / std[c];
  const int64_t grid = image_size / patch_size, area = patch_size * patch_size;
  for (int64_t row = 0; row < grid; ++row)
    for (int64_t column = 0; column < grid; ++column) {
      float* patch = out + (row * grid + column) * 3 * area;
      for (int64_t y = 0; y < patch_size; ++y) {
        const uint8_t* line = image + ((row * patch_size + y) * image_size + column * patch_size) * 3;
        for (int64_t x = 0; x < patch_size; ++x)
          for (int c = 0; c < 3; ++c) patch[c * area + y * patch_size + x] = table[c][line[3 * x + c]];
      }
    }
}

}  // namespace tessera::model::kernels
