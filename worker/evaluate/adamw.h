// AdamW over a handful of autograd leaves: what the small networks of the evaluations are trained with. The model's own optimiser
// works on flat buckets and is not meant for them.
// Source: Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2.
#pragma once

#include <ATen/core/Tensor.h>
#include <vector>

namespace tessera::evaluate {

class AdamW {
 public:
  explicit AdamW(double weight_decay) : weight_decay_(weight_decay) {}
  // Makes `value` a leaf that this optimiser moves; one-dimensional leaves (biases, norms) do not decay. rate_scale: of the
  // learning rate (layer decay).
  at::Tensor add(const at::Tensor& value, double rate_scale = 1);
  // One step from the gradients that backward() left, which are taken away. Leaves without one stay.
  void update(double lr);

 private:
  struct Leaf {
    at::Tensor value, exp_avg, exp_avg_sq;
    double rate_scale;
  };
  double weight_decay_;
  int64_t steps_ = 0;
  std::vector<Leaf> leaves_;
};

// Warm-up over the first `warmup` (a share of total), then a half cosine to zero.
double cosine_rate(double lr, int64_t step, int64_t total, double warmup);

}  // namespace tessera::evaluate
