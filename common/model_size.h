// What a configuration costs, before anything runs: parameters, bytes, FLOPs. Pure; formulas, no measurement.
// Sources: I-JEPA's model definition (ViT blocks with qkv bias, LayerNorm, MLP; frozen sin-cos tables); 2 FLOPs per
// multiply-add; a backward pass costs two forward passes. Parameter counts agree with goldens/params.json.
#pragma once

#include <cstdint>
#include <string>

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

// Bytes on a GPU, as worker/cuda lays them out. tiles: of one rank. An estimate at the mean mask lengths; what LibTorch's
// allocator keeps between sizes comes on top (a tenth, say).
struct GpuMemory {
  int64_t state = 0;        // fp32 weights, moments, target, position tables; bf16 twins of weights and target
  int64_t gradients = 0;    // the tree's partial sums, and the whole sum (one rank with one tile: the same buffer)
  int64_t activations = 0;  // of one tile, kept for its backward pass
  int64_t working = 0;      // the widest pass's temporaries
  int64_t context = 0;      // CUDA's own, cuBLAS workspaces, NCCL
  int64_t total() const { return state + gradients + activations + working + context; }
};
GpuMemory gpu_memory(const FunctionConfig& function, const MaskLengths& lengths, int64_t tiles, int64_t world_size);
// "12.9 GB of state, ..."; empty when `available` suffices, else the sentence that refuses: what is needed, and which
// setting lowers it.
std::string gpu_memory_refusal(const FunctionConfig& function, const GpuMemory& need, int64_t available, const std::string& device);

}  // namespace tessera
