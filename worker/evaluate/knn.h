// `tessera evaluate knn`: classification by nearest neighbours, without training. Also the search behind `tessera neighbours`.
// Legend: q queries, n rows of the bank, d channels, k neighbours.
#pragma once

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>
#include <vector>

#include "worker/evaluate/labelled.h"
#include "worker/evaluate/logistic.h"

namespace tessera::evaluate {

struct Nearest {
  int64_t queries = 0, k = 0;
  std::vector<int64_t> index_qk;     // rows of the bank, nearest first; equal similarities: the smaller row first
  std::vector<float> similarity_qk;  // cosine
};
// Exact search by blocked products: memory is a block per thread, whatever q and n. A row of zeros has similarity 0 to all.
// k in [1, n]. The same bits for every thread count.
Nearest nearest(const at::Tensor& queries_qd, const at::Tensor& bank_nd, int64_t k);

enum class Vote {
  kWeighted,  // each neighbour counts exp(similarity / temperature) (DINO, InstDisc: temperature 0.07)
  kMajority,  // each counts one
};
inline constexpr double kVoteTemperature = 0.07;
// The class of each query by its first k neighbours (k <= nearest.k). A tie goes to the class with the nearer neighbour.
std::vector<int64_t> vote(const Nearest& nearest, const std::vector<int64_t>& bank_labels, int64_t classes, int64_t k, Vote rule);

// ks: values of k, ascending; empty: 10, 20, 100, 200 as far as there are training images. The main value is the weighted
// vote at k = 20, or at the first k when 20 is not among them. Errors: those of read_labelled; kFixData: fewer training
// images than a k that was asked for.
Result<nlohmann::ordered_json> evaluate_knn(const LoadedModel& model, const EvaluationOptions& options, std::vector<int64_t> ks);

}  // namespace tessera::evaluate
