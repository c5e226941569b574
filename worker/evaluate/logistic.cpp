#include "worker/evaluate/logistic.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/ops/zeros.h>
#include <cmath>
#include <deque>

namespace tessera::evaluate {
namespace {

constexpr size_t kPairs = 10;

using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

// The objective and its gradient at x = (W row-major, b).
class Objective {
 public:
  Objective(const at::Tensor& features_nd, const std::vector<int64_t>& labels, int64_t classes, double l2)
      : x_(features_nd), labels_(labels), n_(features_nd.size(0)), d_(features_nd.size(1)), c_(classes), l2_(l2) {}

  size_t size() const { return size_t((d_ + 1) * c_); }

  double operator()(const Vector& at_point, Vector& gradient) const {
    at::Tensor weight = at::empty({d_, c_}, x_.options()), bias = at::empty({c_}, x_.options());
    float* w = weight.mutable_data_ptr<float>();
    float* b = bias.mutable_data_ptr<float>();
    for (int64_t i = 0; i < d_ * c_; ++i) w[i] = float(at_point[size_t(i)]);
    for (int64_t i = 0; i < c_; ++i) b[i] = float(at_point[size_t(d_ * c_ + i)]);
    at::Tensor log_p = at::log_softmax(at::addmm(bias, x_, weight), 1);
    float* p = log_p.mutable_data_ptr<float>();
    double loss = 0;
    std::vector<double> bias_gradient(size_t(c_), 0.0);
    for (int64_t i = 0; i < n_; ++i) {
      float* row = p + i * c_;
      loss -= double(row[labels_[size_t(i)]]);
      for (int64_t k = 0; k < c_; ++k) {
        row[k] = std::exp(row[k]) - (k == labels_[size_t(i)] ? 1.0f : 0.0f);
        bias_gradient[size_t(k)] += double(row[k]);
      }
    }
    const at::Tensor dw = at::mm(x_.t(), log_p);
    const float* g = dw.const_data_ptr<float>();
    double penalty = 0;
    const double n = double(n_);
    for (int64_t i = 0; i < d_ * c_; ++i) {
      const double value = at_point[size_t(i)];
      penalty += value * value;
      gradient[size_t(i)] = (double(g[i]) + l2_ * value) / n;
    }
    for (int64_t k = 0; k < c_; ++k) gradient[size_t(d_ * c_ + k)] = bias_gradient[size_t(k)] / n;
    return (loss + 0.5 * l2_ * penalty) / n;
  }

 private:
  at::Tensor x_;
  const std::vector<int64_t>& labels_;
  int64_t n_, d_, c_;
  double l2_;
};

struct History {
  std::deque<Vector> steps, changes;

  Vector direction(const Vector& gradient) const {
    Vector q = gradient;
    std::vector<double> alpha(steps.size());
    for (size_t i = steps.size(); i-- > 0;) {
      alpha[i] = dot(steps[i], q) / dot(steps[i], changes[i]);
      for (size_t j = 0; j < q.size(); ++j) q[j] -= alpha[i] * changes[i][j];
    }
    if (!steps.empty()) {
      const double scale = dot(steps.back(), changes.back()) / dot(changes.back(), changes.back());
      for (double& value : q) value *= scale;
    }
    for (size_t i = 0; i < steps.size(); ++i) {
      const double beta = dot(changes[i], q) / dot(steps[i], changes[i]);
      for (size_t j = 0; j < q.size(); ++j) q[j] += (alpha[i] - beta) * steps[i][j];
    }
    for (double& value : q) value = -value;
    return q;
  }
  void add(Vector step, Vector change) {
    if (dot(step, change) <= 1e-14 * dot(change, change)) return;
    steps.push_back(std::move(step)), changes.push_back(std::move(change));
    if (steps.size() > kPairs) steps.pop_front(), changes.pop_front();
  }
};

double largest(const Vector& v) {
  double out = 0;
  for (const double value : v) out = std::max(out, std::fabs(value));
  return out;
}

}  // namespace

LogisticModel fit_logistic(const at::Tensor& features_nd, const std::vector<int64_t>& labels, int64_t classes, const LogisticOptions& options, const LogisticModel* start) {
  at::NoGradGuard no_grad;
  const int64_t d = features_nd.size(1);
  const Objective objective(features_nd, labels, classes, options.l2);
  Vector x(objective.size(), 0.0), gradient(objective.size()), next_gradient(objective.size());
  if (start) {
    for (int64_t i = 0; i < d * classes; ++i) x[size_t(i)] = double(start->weight_dc.const_data_ptr<float>()[i]);
    for (int64_t i = 0; i < classes; ++i) x[size_t(d * classes + i)] = double(start->bias_c.const_data_ptr<float>()[i]);
  }
  double value = objective(x, gradient);
  History history;
  LogisticModel model;
  for (; model.iterations < options.iterations && largest(gradient) > options.tolerance; ++model.iterations) {
    Vector direction = history.direction(gradient);
    double slope = dot(direction, gradient);
    if (slope >= 0) {
      history = {};
      for (size_t i = 0; i < direction.size(); ++i) direction[i] = -gradient[i];
      slope = -dot(gradient, gradient);
    }
    double length = history.steps.empty() ? std::min(1.0, 1.0 / std::max(1e-12, largest(gradient))) : 1.0, next_value = value;
    Vector next(x.size());
    bool moved = false;
    for (int tries = 0; tries < 30 && !moved; ++tries, length *= 0.5) {
      for (size_t i = 0; i < x.size(); ++i) next[i] = x[i] + length * direction[i];
      next_value = objective(next, next_gradient);
      moved = next_value <= value + 1e-4 * length * slope;
    }
    if (!moved) break;
    Vector step(x.size()), change(x.size());
    for (size_t i = 0; i < x.size(); ++i) step[i] = next[i] - x[i], change[i] = next_gradient[i] - gradient[i];
    history.add(std::move(step), std::move(change));
    x.swap(next), gradient.swap(next_gradient);
    if (std::fabs(value - next_value) < 1e-6 * std::max(1.0, std::fabs(value))) {
      value = next_value;
      break;
    }
    value = next_value;
  }
  model.weight_dc = at::empty({d, classes}, features_nd.options());
  model.bias_c = at::empty({classes}, features_nd.options());
  for (int64_t i = 0; i < d * classes; ++i) model.weight_dc.mutable_data_ptr<float>()[i] = float(x[size_t(i)]);
  for (int64_t i = 0; i < classes; ++i) model.bias_c.mutable_data_ptr<float>()[i] = float(x[size_t(d * classes + i)]);
  return model;
}

std::vector<int64_t> predict(const LogisticModel& model, const at::Tensor& features_nd) {
  at::NoGradGuard no_grad;
  const at::Tensor best = at::addmm(model.bias_c, features_nd, model.weight_dc).argmax(1);
  const int64_t* data = best.const_data_ptr<int64_t>();
  return {data, data + best.numel()};
}

double accuracy(const std::vector<int64_t>& predicted, const std::vector<int64_t>& labels) {
  int64_t right = 0;
  for (size_t i = 0; i < labels.size(); ++i) right += predicted[i] == labels[i];
  return labels.empty() ? 0 : double(right) / double(labels.size());
}

Standardizer Standardizer::of(const at::Tensor& features_nd) {
  at::NoGradGuard no_grad;
  Standardizer s;
  s.mean_d = features_nd.mean(0);
  const at::Tensor deviation = (features_nd - s.mean_d).square().mean(0).sqrt();
  s.scale_d = at::where(deviation > 1e-8, deviation.clamp_min(1e-8).reciprocal(), at::zeros_like(deviation));
  return s;
}
at::Tensor Standardizer::apply(const at::Tensor& features_nd) const {
  at::NoGradGuard no_grad;
  return ((features_nd - mean_d) * scale_d).contiguous();
}

}  // namespace tessera::evaluate
