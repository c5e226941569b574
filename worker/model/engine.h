// The gradient of one tile: masks and pixels in, loss and gradient out. The same bits for a tile alone, after others,
// or repeated, for any rank that evaluates it.
#pragma once

#include <ATen/core/Tensor.h>
#include <functional>
#include <memory>
#include <vector>

#include "common/config.h"
#include "common/result.h"
#include "worker/model/state.h"

namespace tessera::model {

// One tile as tensors. b images, n patches kept.
struct Tile {
  at::Tensor pixels;                 // [b, S, S, 3] uint8, contiguous
  std::vector<at::Tensor> contexts;  // masks.contexts x [b, Kc] int64, ascending patch indices
  std::vector<at::Tensor> targets;   // masks.targets x [b, Kp] int64
};

struct TileResult {
  double loss = 0;            // the tile's own mean smooth-L1
  double effective_rank = 0;  // exp(entropy of the singular values) of the target features; 0 when not asked
};

// What the networks say about one tile: for pictures and comparisons, not for training.
struct TileOutputs {
  at::Tensor patch_embed_bnd;    // context encoder's patch embedding of all patches, before positions
  at::Tensor context_bkd;        // [contexts * b, Kc, D], context-mask-major
  at::Tensor target_bnd;         // target encoder over all patches, final norm applied; with masks.target_masking: input,
                                 // over each target block alone: [targets * b, Kp, D], target-major
  at::Tensor target_normed_bnd;  // the same after the layer norm without affine
  at::Tensor wanted_bkd;         // its rows under the targets [targets * contexts * b, Kp, D], order (target, context, image)
  at::Tensor prediction_bkd;     // the predictor's answer, same shape and order
  double loss = 0;
};

// Moments within gradient() at which others may begin, or must have ended. Called on the thread that called gradient(); either
// may be empty. On a device whose work is queued the moment is the queue's: whoever begins there has to order his work behind
// what is queued by then.
struct GradientHooks {
  // The bucket's gradient is whole: nothing of this call writes it any more. Once for each bucket, in the order of the
  // backward pass: the layout's last bucket first.
  std::function<void(size_t bucket)> bucket_ready;
  // Nothing of state.target has been read yet, and it is read next. The context encoder's forward pass is behind us.
  std::function<void()> before_target;
};

// Runs on the device of `state`. Not thread-safe; one per trainer. Deterministic with one compute thread; with more,
// sums that matter are chunked so that only the class's thread count matters (DESIGN section 7).
class Engine {
 public:
  static Result<std::unique_ptr<Engine>> make(const FunctionConfig& function, const std::string& device);
  virtual ~Engine() = default;
  // Writes the gradient of the tile's own mean loss (unscaled) into every bucket of `gradient` (overwrites, padding 0). The
  // hooks change no bit of it.
  virtual TileResult gradient(const State& state, const Tile& tile, FlatBuffers& gradient, bool measure_rank, const GradientHooks& hooks) = 0;
  TileResult gradient(const State& state, const Tile& tile, FlatBuffers& into, bool measure_rank) { return gradient(state, tile, into, measure_rank, {}); }
  // The forward passes of gradient() alone.
  virtual TileOutputs outputs(const State& state, const Tile& tile) = 0;
  // Features of the target (or context) encoder over all patches, final norm applied: [b, N, D]. Images of another
  // square size than the model's, a multiple of the patch, get the position table interpolated (interpolate_position).
  virtual at::Tensor features(const State& state, const at::Tensor& pixels_u8, bool context_encoder) = 0;
};

// A position table [g * g, D] at grid x grid: bicubic, corners not aligned, as Hugging Face's interpolate_pos_encoding.
at::Tensor interpolate_position(const at::Tensor& table_nd, int64_t grid);

}  // namespace tessera::model
