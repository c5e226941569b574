// What a frozen encoder says about images. Legend: n images, k patches of an image, d channels.
#pragma once

#include <ATen/core/Tensor.h>
#include <string>
#include <vector>

#include "worker/evaluate/model_source.h"
#include "worker/model/networks.h"

namespace tessera::evaluate {

enum class EncoderKind {
  kTarget,   // the moving average: what the paper evaluates
  kContext,  // the trained one
};
Result<EncoderKind> encoder_kind(const std::string& name);  // "target" | "context"; error: kUsage

enum class Pooling {
  kMean,     // tokens after the final norm, averaged over the patches: [n, d]
  kLast4,    // the last four blocks (all, when there are fewer), each through the final norm and averaged, first to
             // last, side by side: [n, 4 d] (I-JEPA, appendix A.1; DINO's get_intermediate_layers)
  kPatches,  // tokens after the final norm: [n, k, d]
};

// Patches of all images as rows of normalised numbers, in the order of the published convolution: [n k, 3 p p].
at::Tensor patch_rows(const FunctionConfig& function, const at::Tensor& pixels);

// An encoder with its weights, ready for many batches. Holds views of the model: it must outlive this. One thread.
class FrozenEncoder {
 public:
  FrozenEncoder(const LoadedModel& model, EncoderKind kind);

  // pixels [n, S, S, 3] uint8, S a multiple of the patch size. Runs in batches: activations of 64 images at most.
  at::Tensor features(const at::Tensor& pixels, Pooling pooling) const;
  // Attention of the last block, a softmax over keys averaged over the queries: [n, heads, k]; sums to 1 over k.
  at::Tensor attention(const at::Tensor& pixels) const;
  // Floats of one image under a pooling, and patches a side, for images of size S.
  int64_t channels(Pooling pooling) const;
  int64_t grid(int64_t size) const { return size / model_.function.model.patch_size; }

 private:
  // The input of the first block: patches embedded, positions added, [n k, d].
  at::Tensor embed(const at::Tensor& pixels) const;
  at::Tensor batch_features(const at::Tensor& pixels, Pooling pooling) const;

  const LoadedModel& model_;
  const model::FlatBuffers& weights_;
  at::Tensor position_;
  model::Passes passes_;
  model::EncoderPlaces places_;
};

// RGB averaged over square blocks to at most kPixelSide a side, in [0, 1]: the baseline `pixels`, at most 3,072 numbers an
// image so that its probe costs seconds. [n, side * side * 3].
inline constexpr int64_t kPixelSide = 32;
at::Tensor pixel_features(const at::Tensor& pixels);

// The same for the patches of a grid x grid image: [n, grid * grid, up to kPatchPixels].
inline constexpr int64_t kPatchPixels = 8 * 8 * 3;
at::Tensor pixel_patches(const at::Tensor& pixels, int64_t grid);

// Error: kFixData naming `what` when a feature is not finite.
Status check_finite(const at::Tensor& features, const std::string& what);

}  // namespace tessera::evaluate
