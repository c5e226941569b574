#include "worker/evaluate/adamw.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>
#include <cmath>
#include <numbers>

namespace tessera::evaluate {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8;

}  // namespace

at::Tensor AdamW::add(const at::Tensor& value, double rate_scale) {
  value.set_requires_grad(true);
  leaves_.push_back({value, at::zeros_like(value), at::zeros_like(value), rate_scale});
  return value;
}

void AdamW::update(double lr) {
  at::NoGradGuard no_grad;
  ++steps_;
  const double first = 1 - std::pow(kBeta1, double(steps_)), second = 1 - std::pow(kBeta2, double(steps_));
  for (Leaf& leaf : leaves_) {
    const at::Tensor gradient = leaf.value.grad();
    if (!gradient.defined()) continue;
    const double rate = lr * leaf.rate_scale;
    if (leaf.value.dim() > 1) leaf.value.mul_(1 - rate * weight_decay_);
    leaf.exp_avg.mul_(kBeta1).add_(gradient, 1 - kBeta1);
    leaf.exp_avg_sq.mul_(kBeta2).addcmul_(gradient, gradient, 1 - kBeta2);
    leaf.value.addcdiv_(leaf.exp_avg, leaf.exp_avg_sq.div(second).sqrt_().add_(kEps), -rate / first);
    leaf.value.mutable_grad().reset();
  }
}

double cosine_rate(double lr, int64_t step, int64_t total, double warmup) {
  const double start = warmup * double(total);
  if (double(step) < start) return lr * double(step + 1) / start;
  return 0.5 * lr * (1 + std::cos(std::numbers::pi * (double(step) - start) / std::max(1.0, double(total) - start)));
}

}  // namespace tessera::evaluate
