// The sizes of a model read off the shapes of its tensors, for files that bring no configuration.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/result.h"

namespace tessera::import {

// Shape of a tensor under its published name ("encoder.norm.weight"), nullopt when it is not there.
using ShapeOf = std::function<std::optional<std::vector<int64_t>>(const std::string&)>;

// model and predictor of a FunctionConfig. num_heads 0: that of the published variant with these sizes.
// Errors: kFixData naming a missing or impossible tensor; kUsage when no published variant has these sizes and
// num_heads is 0.
Result<FunctionConfig> function_of_shapes(const ShapeOf& shape_of, int64_t num_heads);

}  // namespace tessera::import
