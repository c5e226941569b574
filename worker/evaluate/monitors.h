// `tessera evaluate monitors`: whether a model's features still tell images apart, and where the predictor fails. No labels needed.
#pragma once

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/evaluate/features.h"
#include "worker/evaluate/tiles.h"

namespace tessera::evaluate {

// How far rows differ: a collapsed encoder has deviations near 0, cosines near 1 and an effective rank near 1.
struct Spread {
  double deviation_mean = 0, deviation_min = 0;  // per dimension, over the rows
  double mean_cosine = 0;      // between different rows
  double effective_rank = 0;   // exp(entropy) of the covariance's eigenvalues in shares of their sum (RankMe: Garrido et al.); at most d and n - 1
};
// rows_nd [n, d], n >= 2. Pure.
Spread spread(const at::Tensor& rows_nd);
nlohmann::ordered_json to_json(const Spread& spread);
// Rows that are all but the same: effective rank below 1.5, or cosines of 1 to six digits.
bool collapsed(const Spread& spread);

// The predictor's loss by where a block lies (thirds of the picture by its centre, row by row) and by its size.
class BlockLoss {
 public:
  explicit BlockLoss(std::string loss) : loss_(std::move(loss)) {}  // of function.optimizer.loss
  void add(const proto::TileHeader& header, const model::TileOutputs& outputs);
  // {loss, blocks, by_position [3][3] of {blocks, loss}, by_size {"3x4": {blocks, loss}}}: height x width in patches.
  nlohmann::ordered_json to_json() const;

 private:
  struct Mean {
    int64_t blocks = 0;
    double sum = 0;
  };
  static nlohmann::ordered_json json_of(const Mean& mean);
  std::string loss_;
  Mean all_, position_[3][3];
  std::map<std::string, Mean> size_;
};

struct MonitorOptions {
  std::string data;
  int64_t images = 1000;  // at most
  int64_t seed = 0;
  int threads = 2;
  EncoderKind encoder = EncoderKind::kTarget;
};
// Document: metric effective_rank; features (averaged tokens of images), patches (layer-normed tokens, what the predictor is to meet: the
// effective rank that metrics.jsonl has, over more images), predictor (absent where the model has none). standard_error is 0: it is not estimated.
// Errors: those of the loader; kFixData: fewer than 10 images, features not finite.
Result<nlohmann::ordered_json> evaluate_monitors(const LoadedModel& model, const MonitorOptions& options);

}  // namespace tessera::evaluate
