// The state of a run at a step boundary, on one device: everything that state[k] means.
#pragma once

#include <ATen/core/Tensor.h>
#include <vector>

#include "common/digest.h"
#include "worker/model/layout.h"

namespace tessera::model {

// One flat fp32 buffer per bucket, 64-byte aligned, zero padding.
using FlatBuffers = std::vector<at::Tensor>;

struct State {
  Layout layout;
  FlatBuffers weights;     // context encoder and predictor
  FlatBuffers target;      // encoder buckets only (entries of predictor buckets are undefined tensors)
  FlatBuffers exp_avg;
  FlatBuffers exp_avg_sq;
  FlatBuffers weights_half, target_half;  // bf16 twins of weights and target where the device computes in halves, else empty:
                                          // not state, but made from it
  at::Tensor context_position;    // [N, D] fp32, frozen
  at::Tensor target_position;     // [N, D] fp32, drifts under the published EMA
  at::Tensor predictor_position;  // [N, P] fp32, frozen
  at::Tensor exponents;           // [tensors of the layout] whole numbers as fp32: function.reduction fixed32 only, else undefined
                                  // (collective/fixed_point.h); a pure function of the gradients so far
  int64_t step = 0;        // k: updates done
  int64_t adam_steps = 0;  // Adam's own count; does not advance on skipped steps

  // state[0] of the configuration: weights by Philox (purpose kInit, keyed by the hash of the tensor's name and the
  // element; Box-Muller in double, cast), std 0.02, biases 0, LayerNorm 1 / 0; the target is a copy.
  static State initial(const FunctionConfig& function);
  // Right shapes, everything zero: to be filled by a checkpoint or a peer.
  static State empty(const FunctionConfig& function);

  // A view of one tensor in one role's buffers.
  at::Tensor view(const FlatBuffers& role, const TensorPlace& place) const;

  // INTERFACES.md "state_digest": weights, target, exp_avg, exp_avg_sq under their full names, Adam's step count, and the
  // exponents where there are any; frozen and position tables excluded. Every element of every role.
  StateDigest digest() const;
  // Its two terms: the target may still be on its way when the rest is hashed.
  StateDigest digest_without_target() const;
  StateDigest target_digest() const;
};

// A set of gradient buffers for the layout (zero).
FlatBuffers make_buffers(const Layout& layout);
// "gradient.<name>" digest of a set of buffers.
StateDigest gradient_digest(const Layout& layout, const FlatBuffers& gradient);

}  // namespace tessera::model
