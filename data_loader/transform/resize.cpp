#include "data_loader/transform/resize.h"

#include <algorithm>
#include <cmath>

namespace tessera::data {
namespace {

constexpr int kBits = 22;

double weight_of(Filter filter, double x) {
  x = std::fabs(x);
  if (filter == Filter::kBilinear) return x < 1.0 ? 1.0 - x : 0.0;
  constexpr double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

// For 16-bit multiplies: k = high * 4096 + low with low in [-2048, 2047], two taps side by side.
void split_weights(ResizeScratch::Weights& w) {
  w.split.resize(w.weight.size());
  for (size_t i = 0; i < w.weight.size(); i += 2) {
    const int32_t k0 = w.weight[i], k1 = w.weight[i + 1];
    const int32_t low0 = ((k0 + 2048) & 4095) - 2048, low1 = ((k1 + 2048) & 4095) - 2048;
    const int32_t high0 = (k0 - low0) >> 12, high1 = (k1 - low1) >> 12;
    w.split[i] = int32_t((uint32_t(high0) & 0xFFFFu) | uint32_t(high1) << 16);
    w.split[i + 1] = int32_t((uint32_t(low0) & 0xFFFFu) | uint32_t(low1) << 16);
  }
}

// Pillow's precompute_coeffs and normalize_coeffs_8bpc for a box [0, in).
void prepare(ResizeScratch::Weights& w, int in, int out, Filter filter) {
  if (w.in == in && w.out == out && w.filter == filter) return;
  const double scale = double(in) / out, filter_scale = std::max(scale, 1.0);
  const double support = (filter == Filter::kBilinear ? 1.0 : 2.0) * filter_scale, step = 1.0 / filter_scale;
  w.in = in, w.out = out, w.filter = filter;
  w.taps = (int(std::ceil(support)) * 2 + 1 + 3) & ~3;
  w.first.assign(size_t(out), 0), w.count.assign(size_t(out), 0), w.weight.assign(size_t(out) * size_t(w.taps), 0);
  std::vector<double> k(size_t(w.taps), 0.0);
  for (int x = 0; x < out; ++x) {
    const double centre = (x + 0.5) * scale;
    const int first = std::max(0, int(centre - support + 0.5)), count = std::min(in, int(centre + support + 0.5)) - first;
    double total = 0;
    for (int i = 0; i < count; ++i) total += k[size_t(i)] = weight_of(filter, (i + first - centre + 0.5) * step);
    for (int i = 0; i < count; ++i) {
      const double value = (total != 0.0 ? k[size_t(i)] / total : k[size_t(i)]) * (1 << kBits);
      w.weight[size_t(x) * size_t(w.taps) + size_t(i)] = int32_t(value < 0 ? value - 0.5 : value + 0.5);
    }
    w.first[size_t(x)] = first, w.count[size_t(x)] = count;
  }
  split_weights(w);
}

uint8_t clip8(int32_t value) {
  value >>= kBits;
  return uint8_t(value < 0 ? 0 : value > 255 ? 255 : value);
}

template <int kPixelBytes>
void horizontal_row(const uint8_t* in, const ResizeScratch::Weights& w, uint8_t* out) {
  for (int x = 0; x < w.out; ++x) {
    const int32_t* weight = w.weight.data() + size_t(x) * size_t(w.taps);
    const uint8_t* pixel = in + size_t(w.first[size_t(x)]) * kPixelBytes;
    int32_t r = 1 << (kBits - 1), g = r, b = r;
    for (int i = 0; i < w.count[size_t(x)]; ++i, pixel += kPixelBytes) r += pixel[0] * weight[i], g += pixel[1] * weight[i], b += pixel[2] * weight[i];
    out[3 * x] = clip8(r), out[3 * x + 1] = clip8(g), out[3 * x + 2] = clip8(b);
  }
}

void vertical_row(const uint8_t* in, int64_t row_bytes, const int32_t* weight, int count, int bytes, uint8_t* out) {
  for (int at = 0; at < bytes; at += 64) {
    int32_t sum[64];
    const int n = std::min(64, bytes - at);
    for (int j = 0; j < n; ++j) sum[j] = 1 << (kBits - 1);
    for (int i = 0; i < count; ++i) {
      const uint8_t* row = in + i * row_bytes + at;
      const int32_t k = weight[i];
      for (int j = 0; j < n; ++j) sum[j] += row[j] * k;
    }
    for (int j = 0; j < n; ++j) out[at + j] = clip8(sum[j]);
  }
}

void mirror_rows(uint8_t* pixels, int size) {
  for (int y = 0; y < size; ++y) {
    uint8_t* row = pixels + int64_t{y} * size * 3;
    for (int x = 0; x < size / 2; ++x)
      for (int c = 0; c < 3; ++c) std::swap(row[3 * x + c], row[3 * (size - 1 - x) + c]);
  }
}

void vertical_rows(const uint8_t* in, int64_t row_bytes, const ResizeScratch::Weights& w, int bytes, uint8_t* out) {
  for (int y = 0; y < w.out; ++y)
    vertical_row(in + w.first[size_t(y)] * row_bytes, row_bytes, w.weight.data() + size_t(y) * size_t(w.taps), w.count[size_t(y)], bytes, out + int64_t{y} * bytes);
}

// Both passes; box_pixels is the box's first pixel.
template <int kPixelBytes>
void resize_scalar(const uint8_t* box_pixels, int64_t row_bytes, int in_height, int in_width, int size, ResizeScratch& s, uint8_t* out) {
  const bool vertical_first = vertical_pass_first(in_height, in_width, size);
  const int64_t out_row = int64_t{size} * 3, between_row = vertical_first ? int64_t{in_width} * kPixelBytes : out_row;
  const int between_rows = vertical_first ? size : in_height;
  if (s.between.size() < size_t(between_rows * between_row)) s.between.resize(size_t(between_rows * between_row));
  if (vertical_first) {
    vertical_rows(box_pixels, row_bytes, s.vertical, int(between_row), s.between.data());
    for (int y = 0; y < size; ++y) horizontal_row<kPixelBytes>(s.between.data() + y * between_row, s.horizontal, out + y * out_row);
  } else {
    for (int y = 0; y < in_height; ++y) horizontal_row<kPixelBytes>(box_pixels + y * row_bytes, s.horizontal, s.between.data() + y * between_row);
    vertical_rows(s.between.data(), between_row, s.vertical, int(out_row), out);
  }
}

}  // namespace

bool resize_code_available(ResizeCode code) {
  if (code == ResizeCode::kAvx512) return resize_avx512_available();
  return code != ResizeCode::kAvx2 || resize_avx2_available();
}

Result<Filter> filter_of(const std::string& interpolation) {
  if (interpolation == "bilinear") return Filter::kBilinear;
  if (interpolation == "bicubic") return Filter::kBicubic;
  return fail(ErrorCode::kFixConfig, "[data_loader] function.data.interpolation is '" + interpolation + "'; set bilinear or bicubic");
}

void crop_resize(const uint8_t* rgb, int64_t row_bytes, const proto::CropBox& box, int size, Filter filter, uint8_t* out, ResizeScratch& s) {
  prepare(s.horizontal, box.width, size, filter);
  prepare(s.vertical, box.height, size, filter);
  resize_scalar<3>(rgb + box.top * row_bytes + int64_t{box.left} * 3, row_bytes, box.height, box.width, size, s, out);
  if (box.flip) mirror_rows(out, size);
}

void crop_resize_rgbx(const uint8_t* box_pixels, int64_t row_bytes, const proto::CropBox& box, int size, Filter filter, uint8_t* out, ResizeScratch& s,
                      ResizeCode code) {
  prepare(s.horizontal, box.width, size, filter);
  prepare(s.vertical, box.height, size, filter);
  if (code == ResizeCode::kBest) code = resize_avx512_available() ? ResizeCode::kAvx512 : resize_avx2_available() ? ResizeCode::kAvx2 : ResizeCode::kScalar;
  if (code == ResizeCode::kAvx512) resize_avx512(box_pixels, row_bytes, box.height, box.width, size, s, out);
  else if (code == ResizeCode::kAvx2) resize_avx2(box_pixels, row_bytes, box.height, box.width, size, s, out);
  else resize_scalar<4>(box_pixels, row_bytes, box.height, box.width, size, s, out);
  if (box.flip) mirror_rows(out, size);
}

}  // namespace tessera::data
