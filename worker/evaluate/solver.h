// The linear probe by stochastic gradients, as published: SGD (VISSL) or LARS (MAE, I-JEPA), beside L-BFGS of logistic.h.
//
// I-JEPA, appendix A.1: batch-normalised features without affine, LARS, 50 epochs, the rate divided by ten every 15, base rates
// {.01, .05, .001}, weight decay {.0005, 0}. Here features are standardised by the whole training part, what batch normalisation tends to.
#pragma once

#include "worker/evaluate/logistic.h"

namespace tessera::evaluate {

enum class Solver {
  kLbfgs,  // L2 from a grid: logistic.h
  kSgd,    // momentum .9
  kLars,   // You et al., "Large batch training of convolutional networks": layer-wise trust ratio, coefficient .001, for the weight alone
};

struct SgdOptions {
  Solver solver = Solver::kSgd;
  double lr = 0.01, weight_decay = 0;
  int64_t epochs = 50, batch = 256, seed = 0;
};

inline constexpr double kBaseRates[] = {0.05, 0.01, 0.001};
inline constexpr double kSgdDecays[] = {0.0005, 0};
// The rate that a base rate means. SGD: base x batch / 256 (the linear scaling rule). LARS: base x 64, the rule at the published
// batch of 16,384, whatever the batch: a LARS step's length does not grow with it.
double scaled_rate(Solver solver, double base, int64_t batch);

// features_nd [n, d] fp32 contiguous and standardised; labels in [0, classes). Deterministic for one thread count.
LogisticModel fit_sgd(const at::Tensor& features_nd, const std::vector<int64_t>& labels, int64_t classes, const SgdOptions& options);

}  // namespace tessera::evaluate
