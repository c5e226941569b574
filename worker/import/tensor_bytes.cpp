#include "worker/import/tensor_bytes.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace tessera::import {
namespace {

float from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3FFu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | fraction << 13);
  const float size = exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(float(fraction | 0x400u), int(exponent) - 25);
  return sign ? -size : size;
}

}  // namespace

bool is_weight_dtype(const std::string& dtype) { return dtype == "F32" || dtype == "BF16" || dtype == "F16"; }

void widen(const std::string& dtype, const void* in, int64_t count, float* out) {
  if (dtype == "F32") {
    if (in != out) std::memcpy(out, in, size_t(count) * 4);
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(in);
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, halves + i, 2);
    out[i] = dtype == "BF16" ? std::bit_cast<float>(uint32_t(half) << 16) : from_half(half);
  }
}

Status check_finite(const std::string& name, const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(values[i]))
      return fail(ErrorCode::kFixData, name + ": element " + std::to_string(i) + " is " + std::to_string(values[i]) + "; the model had diverged, take an earlier checkpoint");
  return {};
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace tessera::import
