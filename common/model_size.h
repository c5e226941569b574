// What a configuration costs, before anything runs: parameters, bytes, FLOPs. Pure; formulas, no measurement.
// Sources: I-JEPA's model definition (ViT blocks with qkv bias, LayerNorm, MLP; frozen sin-cos tables); 2 FLOPs per
// multiply-add; a backward pass costs two forward passes. Parameter counts agree with goldens/params.json.
#pragma once

#include <cstdint>

#include "common/config.h"

namespace tessera {

struct ParameterCount {
  int64_t trainable = 0;
  int64_t with_table = 0;  // and the frozen position table
  int64_t tensors = 0;     // the table included
};
ParameterCount encoder_parameters(const ModelConfig& model);
ParameterCount predictor_parameters(const ModelConfig& model, const PredictorConfig& predictor);

// Mean numbers of patches that an image's context and each of its targets keep after truncation to the mask group.
// Multi-block lengths are estimated from groups drawn with a fixed generator (an estimate to about 2 %, not the masks of
// the run); the other kinds' are exact.
struct MaskLengths {
  double context = 0;
  double target = 0;
  int64_t contexts = 1;
  int64_t targets = 1;
};
MaskLengths expected_mask_lengths(const FunctionConfig& function);

// FLOPs of one image, by part; forward and backward of the trained parts, forward of the target encoder.
struct ImageFlops {
  double target = 0;
  double context = 0;
  double predictor = 0;
  double total() const { return target + context + predictor; }
};
ImageFlops image_flops(const FunctionConfig& function, const MaskLengths& lengths);

// Bytes in fp32. State: context encoder, predictor, target encoder and both moments; every rank holds it whole.
struct MemoryEstimate {
  int64_t state = 0;
  int64_t gradients = 0;    // accumulators of the tree sum on a rank with all tiles: log2(tiles) + 1
  int64_t activations = 0;  // kept for the backward pass of one tile; a rough upper estimate
  int64_t checkpoint = 0;
  int64_t total() const { return state + gradients + activations; }
};
MemoryEstimate memory_estimate(const FunctionConfig& function, const MaskLengths& lengths);

}  // namespace tessera
