// A small generative model of what lies in a masked block, given what the predictor says about it: conditional flow matching on
// pictures of 32 x 32, a convolutional U-Net of about a million weights. Drawn several times for one condition, what stays the same is what
// the predictor knows and what varies is what it does not.
//
//   x_t = (1 - t) noise + t picture;   minimise |net(x_t, t, condition) - (picture - noise)|^2;   draw: integrate net from t = 0 to 1
//
// Sources: Assran et al. (I-JEPA), section 8, whose decoder is RCDM (Bordes et al.); flow matching: Lipman et al., "Flow matching
// for generative modeling", with straight paths. Legend: b pictures, c channels, h = w = kDecoderSide, e condition numbers.
#pragma once

#include <ATen/core/Tensor.h>
#include <functional>
#include <map>
#include <string>

#include "common/result.h"

namespace tessera::evaluate {

inline constexpr int64_t kDecoderSide = 32;

// What it learns from: a frozen model's words about a block, and the block.
struct DecoderPairs {
  at::Tensor condition_be;    // fp32
  at::Tensor pictures_bhwc;   // [b, 32, 32, 3] uint8
};

struct DecoderTraining {
  int64_t steps = 1500, batch = 32, seed = 0;
  double lr = 2e-3;
};

class PictureDecoder {
 public:
  // Initial weights and all noise are Philox kDecoder of the seed. steps < 1 gives the initial weights.
  // progress(step, loss of the last steps) every twentieth of the way. Activations are bf16 where the CPU multiplies it (the same loss in two thirds
  // of the time), weights and their average fp32. Deterministic for one thread count and kind of CPU.
  static PictureDecoder train(const DecoderPairs& pairs, const DecoderTraining& options, const std::function<void(int64_t, double)>& progress);

  // pictures [b, 32, 32, 3] uint8, one for each condition; noise of picture i is that of (seed, draw, first + i).
  // steps: midpoint steps of the integration, two evaluations each.
  at::Tensor draw(const at::Tensor& condition_be, int64_t seed, int64_t draw, int64_t first = 0, int64_t steps = 24) const;

  int64_t condition_size() const;
  double final_loss() const { return final_loss_; }

  // encoder_digest: state digest of the model that it was trained for. notes: more metadata to keep.
  Status save(const std::string& path, const std::string& encoder_digest, const std::map<std::string, std::string>& notes) const;
  // Errors: kFixData: no decoder there, or one of another model, with both digests.
  static Result<PictureDecoder> load(const std::string& path, const std::string& encoder_digest);

 private:
  using Weights = std::map<std::string, at::Tensor>;
  // Computes in x's type, fp32 or bf16.
  at::Tensor velocity(const at::Tensor& x_bchw, const at::Tensor& t_b, const at::Tensor& condition_be) const;
  at::Tensor residual(const std::string& name, const at::Tensor& x_bchw, const at::Tensor& told_be) const;
  at::Tensor weight(const std::string& name, const at::Tensor& like) const;  // in like's type
  at::Tensor convolve(const std::string& name, const at::Tensor& x_bchw) const;
  at::Tensor normal(const at::Tensor& condition_be) const;  // standardised

  Weights weights_;
  double final_loss_ = 0;
};

}  // namespace tessera::evaluate
