// What a tile's header must satisfy before its numbers reach a kernel: it comes from another process, so it is data.
#pragma once

#include "common/config.h"
#include "common/result.h"
#include "proto/messages.h"

namespace tessera::trainer {

// Sizes as the function's (images, grid, number of masks), every mask list as long as it says and its patch indices
// inside the grid. Pure. Error: kRetry, what is wrong: ask another loader.
Status check_header(const proto::TileHeader& header, const FunctionConfig& function);

}  // namespace tessera::trainer
