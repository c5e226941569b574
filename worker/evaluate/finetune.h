// `tessera evaluate finetune`: encoder and a linear head trained on labels, beside the same from random weights. Also `low-shot
// --finetune`. The recipe is the paper's for 1 % of ImageNet in small (appendix A.1): AdamW, cosine, layer decay .75, label smoothing .1;
// without its augmentation, but for a flip that is off unless asked for.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "worker/evaluate/adamw.h"
#include "worker/evaluate/labelled.h"
#include "worker/evaluate/low_shot.h"

namespace tessera::evaluate {

struct FinetuneOptions {
  int64_t epochs = 10, batch = 64;
  double lr = 1e-3, weight_decay = 0.05, layer_decay = 0.75;
  bool flip = false;  // half of the images left to right: not for labels that say where something is
};

// A copy of an encoder whose weights have gradients, with a linear head on its averaged tokens. fp32, whatever the model's precision.
class TrainableEncoder {
 public:
  // The rate of block i is layer_decay^(depth - i) of the head's; the patch embedding counts as the block before the first.
  // Positions stay as they are. Head: zero.
  TrainableEncoder(const LoadedModel& model, EncoderKind kind, int64_t classes, AdamW& optimizer, double layer_decay);
  // pixels [b, S, S, 3] uint8, S the model's size. Averaged tokens after the final norm [b, d]: what FrozenEncoder gives under kMean.
  at::Tensor features(const at::Tensor& pixels) const;
  at::Tensor logits(const at::Tensor& pixels) const;

 private:
  at::Tensor weight(int place) const { return weights_[size_t(place)]; }
  at::Tensor block(const model::BlockPlaces& p, const at::Tensor& x_bnd) const;

  const FunctionConfig& function_;
  model::EncoderPlaces places_;
  std::vector<at::Tensor> weights_;  // by place in the layout; the encoder's only
  at::Tensor position_, head_w_, head_b_;
};

// Class of each test image after training on the others. Deterministic for one thread count.
std::vector<int64_t> finetuned(const LoadedModel& model, EncoderKind kind, const at::Tensor& train_pixels, const std::vector<int64_t>& labels, int64_t classes, const at::Tensor& test_pixels,
                               const FinetuneOptions& options, int64_t seed);

// One label: --label, or the main one. baselines: random_init is trained the same way (supervised from scratch), pixels is the linear probe's.
// With several seeds, value is their mean and standard_error that of the mean.
// Errors: those of read_labelled; kUsage when the pixels need more than 4 GiB.
Result<nlohmann::ordered_json> evaluate_finetune(const LoadedModel& model, const EvaluationOptions& options, const FinetuneOptions& finetune, const std::vector<int64_t>& seeds);
// The same on few labels, over draws. Errors: also those of low-shot.
Result<nlohmann::ordered_json> evaluate_low_shot_finetune(const LoadedModel& model, const EvaluationOptions& options, const FinetuneOptions& finetune, const Shots& shots, int64_t draws);

}  // namespace tessera::evaluate
