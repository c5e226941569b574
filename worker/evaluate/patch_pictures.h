// `tessera visualize pca` and `visualize attention`: what an encoder's patches say, as pictures. Need no labels.
#pragma once

#include <ATen/core/Tensor.h>
#include <string>

#include "worker/evaluate/features.h"

namespace tessera::evaluate {

struct PatchPictureOptions {
  std::string data, out;  // out: PNG
  EncoderKind encoder = EncoderKind::kTarget;
  int64_t images = 12;  // spread evenly over the dataset
  int threads = 2;
};

// The first three principal components of all patches [r, d] as colours [r, 3] in [0, 1]: each component from its 1st to
// its 99th percentile. The sign of a component is the one that makes its largest weight positive. Pure.
at::Tensor pca_colors(const at::Tensor& patches_rd);

// Pairs of image and patch colours. Errors: those of the loader; kFixData (fewer images than asked, features not finite); kIo.
Status draw_pca(const LoadedModel& model, const PatchPictureOptions& options);
// Rows of image, attention averaged over heads, then each head (at most 8): how much a patch is looked at by all in the last
// block; each map from its smallest value (black) to its largest (white), so a flat map shows its noise.
Status draw_attention(const LoadedModel& model, const PatchPictureOptions& options);

}  // namespace tessera::evaluate
