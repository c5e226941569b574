#include "worker/evaluate/solver.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <cmath>
#include <numbers>
#include <numeric>

#include "common/philox.h"
#include "worker/evaluate/labelled.h"

namespace tessera::evaluate {
namespace {

constexpr double kMomentum = 0.9, kTrust = 0.001, kInitial = 0.01;
constexpr int64_t kEpochsPerTenth = 15;
constexpr uint32_t kOrderStream = 500, kWeightStream = 501;

at::Tensor initial_weight(int64_t d, int64_t classes, int64_t seed) {
  at::Tensor w = at::zeros({d, classes}, at::kFloat);
  float* out = w.mutable_data_ptr<float>();
  PhiloxStream random(uint64_t(seed), Purpose::kProbe, 0, kWeightStream);
  for (int64_t i = 0; i < w.numel(); ++i) out[i] = float(kInitial * std::sqrt(-2 * std::log(1 - random.next_double())) * std::cos(2 * std::numbers::pi * random.next_double()));
  return w;
}

// |w| / |gradient| x trust; 1 where one of them is nothing.
double trust_ratio(const at::Tensor& w, const at::Tensor& gradient) {
  const double own = w.norm().item<double>(), change = gradient.norm().item<double>();
  return own > 0 && change > 0 ? kTrust * own / change : 1;
}

}  // namespace

double scaled_rate(Solver solver, double base, int64_t batch) { return base * (solver == Solver::kLars ? 64.0 : double(batch) / 256.0); }

LogisticModel fit_sgd(const at::Tensor& features_nd, const std::vector<int64_t>& labels, int64_t classes, const SgdOptions& o) {
  at::NoGradGuard no_grad;
  const int64_t n = features_nd.size(0), d = features_nd.size(1), batch = std::min(o.batch, n);
  LogisticModel model{initial_weight(d, classes, o.seed), at::zeros({classes}, at::kFloat), 0};
  at::Tensor moving_w = at::zeros({d, classes}, at::kFloat), moving_b = at::zeros({classes}, at::kFloat);
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t epoch = 0; epoch < o.epochs; ++epoch) {
    const double lr = o.lr * std::pow(0.1, double(epoch / kEpochsPerTenth));
    PhiloxStream random(uint64_t(o.seed), Purpose::kProbe, uint64_t(epoch), kOrderStream);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.next_below(uint32_t(i))]);
    for (int64_t first = 0; first + batch <= n; first += batch, ++model.iterations) {
      const std::vector<int64_t> rows(order.begin() + first, order.begin() + first + batch);
      const at::Tensor x = features_nd.index_select(0, rows_tensor(rows));
      at::Tensor p = at::softmax(at::addmm(model.bias_c, x, model.weight_dc), 1);
      for (int64_t i = 0; i < batch; ++i) p.mutable_data_ptr<float>()[i * classes + labels[size_t(rows[size_t(i)])]] -= 1;
      p.div_(double(batch));
      at::Tensor gradient = at::mm(x.t(), p).add_(model.weight_dc, o.weight_decay);
      if (o.solver == Solver::kLars) gradient.mul_(trust_ratio(model.weight_dc, gradient));
      moving_w.mul_(kMomentum).add_(gradient), moving_b.mul_(kMomentum).add_(p.sum(0));
      model.weight_dc.sub_(moving_w, lr), model.bias_c.sub_(moving_b, lr);
    }
  }
  return model;
}

}  // namespace tessera::evaluate
