// Encoder and predictor built from passes: which patches enter, in which order batches are laid out, what the backward
// needs. Order of outputs (facts of the published code): context encoder [contexts * b, Kc, D], context-mask-major;
// predictor and targets [targets * contexts * b, Kp, D] in the order (target i, context j, image b).
#pragma once

#include <functional>
#include <vector>

#include "worker/model/engine.h"
#include "worker/model/passes.h"

namespace tessera::model {

struct EncoderPlaces {
  int patch_w, patch_b, norm_w, norm_b;
  std::vector<BlockPlaces> blocks;
};
struct PredictorPlaces {
  int embed_w, embed_b, mask_token, norm_w, norm_b, proj_w, proj_b;
  std::vector<BlockPlaces> blocks;
};
EncoderPlaces encoder_places(const Layout& layout);
PredictorPlaces predictor_places(const Layout& layout);

// GradientHooks::bucket_ready; may be empty.
using BucketReady = std::function<void(size_t bucket)>;

struct EncoderTape {
  at::Tensor patches_rd;
  std::vector<BlockTape> blocks;
  at::Tensor last_rd;
  Norm norm;
};
struct PredictorTape {
  at::Tensor encoded_rd;
  std::vector<BlockTape> blocks;
  at::Tensor last_rd;  // of the queries
  Norm norm;
};

// patches_rd [b n, 3 p p] rows of the kept patches, position_rd [b n, D] their rows of the table. Returns [b n, D] after
// the final norm.
at::Tensor encode(const Passes& passes, const Weights& w, const EncoderPlaces& places, const at::Tensor& patches_rd, const at::Tensor& position_rd,
                  int64_t b, int64_t heads, EncoderTape* tape);
// Both backwards take the tape apart: what a block kept is freed when it has been read, and the next block's temporaries
// take its place.
void encode_backward(const Passes& passes, const Weights& w, const EncoderPlaces& places, EncoderTape tape, const at::Tensor& dout_rd, int64_t b,
                     int64_t heads, FlatBuffers& gradient, const BucketReady& ready);

struct PredictorShape {
  int64_t images, contexts, targets, context_length, target_length, heads;
  int64_t sequences() const { return images * contexts * targets; }
  // Of a block. Of the last block's output only the queries are read.
  Sequences in_block(size_t block, size_t depth) const { return {sequences(), heads, block + 1 == depth ? context_length : 0}; }
};
// encoded_rd [contexts b Kc, D]; context_position_rd [contexts b Kc, P]; query_position_rd [targets b Kp, P].
// Returns predictions [targets contexts b Kp, D].
at::Tensor predict(const Passes& passes, const Weights& w, const PredictorPlaces& places, const PredictorShape& shape, const at::Tensor& encoded_rd,
                   const at::Tensor& context_position_rd, const at::Tensor& query_position_rd, PredictorTape* tape);
// Returns the gradient for encoded_rd.
at::Tensor predict_backward(const Passes& passes, const Weights& w, const PredictorPlaces& places, const PredictorShape& shape, PredictorTape tape,
                            const at::Tensor& dprediction_rd, FlatBuffers& gradient, const BucketReady& ready);

}  // namespace tessera::model
