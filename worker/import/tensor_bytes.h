// Elements of foreign dtypes as float, checked for NaN and Inf.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::import {

// Whether widen() reads it: F32, BF16, F16.
bool is_weight_dtype(const std::string& dtype);
// count elements of dtype at `in` to floats. in == out is allowed for F32.
void widen(const std::string& dtype, const void* in, int64_t count, float* out);
// Error: kFixData "NAME: element 17 is nan ..." when one is NaN or infinite.
Status check_finite(const std::string& name, const float* values, int64_t count);
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace tessera::import
