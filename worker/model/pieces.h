// Tensors cut into pieces that the second-level cache holds several roles of: what passes over the whole state on a CPU
// share among threads. Cut by the layout alone, so that sums in the order of pieces have the same bits for any threads.
#pragma once

#include <vector>

#include "common/digest.h"
#include "worker/model/layout.h"

namespace tessera::model {

inline constexpr int64_t kPieceFloats = 8192;
inline constexpr int64_t kPiecesPerTask = 8;

struct Piece {
  const TensorPlace* place;
  int64_t first, count;  // elements of the tensor
};
// Of all tensors, in order. The layout must outlive them.
std::vector<Piece> pieces_of(const Layout& layout);

// Seeds of a tensor's digest as a gradient.
LaneSeeds gradient_seeds(const TensorPlace& place);

}  // namespace tessera::model
