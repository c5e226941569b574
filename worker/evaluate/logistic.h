// Multinomial logistic regression by L-BFGS: the linear probe of INTERFACES.md.
//
//   minimise over W [d, c], b [c]:  mean_i CE(softmax(x_i W + b), y_i) + l2 / (2 n) |W|^2      (scikit-learn's C = 1 / l2)
//
// Limited-memory BFGS with ten pairs and a backtracking line search (Nocedal and Wright, Numerical Optimization, algorithms
// 7.4 and 3.1); fp32 products, sums in double. Deterministic for one thread count.
#pragma once

#include <ATen/core/Tensor.h>
#include <vector>

namespace tessera::evaluate {

struct LogisticOptions {
  double l2 = 1.0;
  int iterations = 200;
  double tolerance = 1e-6;  // stop when the gradient's largest element is below
};

struct LogisticModel {
  at::Tensor weight_dc;  // [d, c] fp32
  at::Tensor bias_c;     // [c]
  int iterations = 0;
};

// features_nd [n, d] fp32 contiguous; labels in [0, classes). start: where to begin (may be null: zero).
LogisticModel fit_logistic(const at::Tensor& features_nd, const std::vector<int64_t>& labels, int64_t classes, const LogisticOptions& options,
                           const LogisticModel* start = nullptr);
// Index of the most probable class of each row.
std::vector<int64_t> predict(const LogisticModel& model, const at::Tensor& features_nd);
double accuracy(const std::vector<int64_t>& predicted, const std::vector<int64_t>& labels);

// Mean and deviation per dimension of the training part; dimensions that do not vary become 0.
struct Standardizer {
  at::Tensor mean_d, scale_d;
  static Standardizer of(const at::Tensor& features_nd);
  at::Tensor apply(const at::Tensor& features_nd) const;
};

}  // namespace tessera::evaluate
