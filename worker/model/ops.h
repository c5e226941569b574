// The primitive operations of the passes, one implementation per kind of device: cpu_ops.cpp, worker/cuda/cuda_ops.cpp.
// How they make a network is written once (passes.cpp, networks.cpp, engine.cpp). An implementation may compute in halves
// and fuse what one call names; it may not choose by timing, keep state between calls that changes bits, or use atomics.
//
// Legend: b sequences, n tokens, r = b n rows, d channels, h heads. "Stream" tensors (the residual stream, its gradient,
// outputs of networks) are fp32; "inner" ones (LayerNorm's output on its way into a product, q k v, the hidden layer) are
// in whatever type the device computes in, and only the same object's calls read them.
#pragma once

#include <ATen/core/Tensor.h>
#include <memory>

#include "worker/model/kernels.h"
#include "worker/model/state.h"

namespace tessera::model {

// One role's buffers, and, where the device computes in halves, their bf16 twins (State::weights_half).
struct Weights {
  const FlatBuffers& full;
  const FlatBuffers* half = nullptr;
  Weights(const FlatBuffers& f, const FlatBuffers* h = nullptr) : full(f), half(h && !h->empty() ? h : nullptr) {}  // NOLINT: a role converts
};

struct LinearPlaces {
  int weight, bias;
};
struct NormPlaces {
  int weight, bias;
};
struct Norm {
  at::Tensor out_rd, mean_r, rstd_r;
};
enum class NormFor {
  kProduct,  // inner: the next linear reads it
  kStream,   // fp32: a network's output
};
enum class LinearFor {
  kStream,
  kAttention,  // inner: q k v
};
struct Hidden {
  at::Tensor before_rd, after_rd;  // GELU; inner
  at::Tensor bias_d;               // fp32; defined where it is not in before_rd yet
};
// The sum of a residual connection, and the norm that reads it.
struct Joined {
  at::Tensor sum_rd;
  Norm norm;  // undefined tensors when no norm follows
};
struct NextNorm {
  NormPlaces places;
  NormFor use;
};
// Sequences of equally many tokens. The first `unread` tokens of each are keys and values only: nothing reads what they
// would become.
struct Sequences {
  int64_t count, heads, unread = 0;
};
// The tokens that are read, out of [count n, ...] rows: [count (n - unread), ...]; and back, with zeros before them.
at::Tensor read_rows(const at::Tensor& all_rd, const Sequences& s);
at::Tensor with_unread(const at::Tensor& read_rd, const Sequences& s);

struct Attention {
  at::Tensor out_rd;  // inner; all heads' answers before the projection, of the tokens that are read
  at::Tensor lse_bhn;
  at::Tensor seed, offset;  // of a dropout that is zero: some fused kernels want them back
};
// The gradient that a linear layer's backward reads. A device that computes in halves gives the bf16 rounding too, or
// alone; and, where the kernel that made it had them at hand, the sums over its rows: the layer's bias gradient.
struct Flow {
  at::Tensor full_rd, half_rd, sum_d;
  Flow() = default;
  Flow(at::Tensor full, at::Tensor half = {}, at::Tensor sum = {}) : full_rd(std::move(full)), half_rd(std::move(half)), sum_d(std::move(sum)) {}  // NOLINT: a gradient converts
};

class Ops {
 public:
  explicit Ops(const Layout& layout) : layout_(layout) {}
  virtual ~Ops() = default;

  // A tensor of the host where the operations run.
  virtual at::Tensor bring(const at::Tensor& host) const { return host; }

  // View of one tensor: a vector, or a matrix of its first dimension's rows.
  at::Tensor weight(const FlatBuffers& role, int place) const;

  // x W^T + b. x [r, in], stream or inner; [r, out].
  virtual at::Tensor linear(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, LinearFor use) const = 0;
  // residual + x W^T + b, then the norm after it, if any.
  virtual Joined linear_add_norm(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, const at::Tensor& residual_rd, const NextNorm* next) const = 0;
  // GELU(x W^T + b), exact (erf).
  virtual Hidden linear_gelu(const Weights& w, const at::Tensor& x_rd, LinearPlaces p) const = 0;
  // Writes dW and db in fp32 into their places; returns dx (inner) when wanted.
  virtual at::Tensor linear_backward(const Weights& w, const at::Tensor& x_rd, const Flow& dy, LinearPlaces p, FlatBuffers& gradient, bool want_dx) const = 0;
  // What a tape keeps of the hidden layer: all of it, or what the backward does not compute again.
  virtual Hidden kept(const Hidden& hidden) const { return hidden; }
  // Backward of the linear layer that read hidden.after_rd (as linear_backward), and of the GELU: gradient before it.
  virtual Flow gelu_linear_backward(const Weights& w, const Hidden& kept, const Flow& dy, LinearPlaces p, FlatBuffers& gradient) const = 0;

  // LayerNorm with affine, eps 1e-6, over the last dimension of stream rows.
  virtual Norm norm(const Weights& w, const at::Tensor& x_rd, NormPlaces p, NormFor use) const = 0;
  // dx (+ residual); writes dgamma, dbeta.
  virtual Flow norm_backward(const Weights& w, const at::Tensor& x_rd, const Norm& forward, const at::Tensor& dy_rd, const at::Tensor& residual_rd, NormPlaces p,
                             FlatBuffers& gradient) const = 0;
  // The published normalisation of targets: no affine, eps 1e-5.
  virtual at::Tensor target_norm(const at::Tensor& x_rd) const = 0;

  // Self-attention over rows [r, 3 d] in (q, k, v; head; channel) order. keep: a backward follows, which gives the
  // gradient of all rows (queries that nobody read: zero).
  virtual Attention attend(const at::Tensor& qkv_rd, const Sequences& s, bool keep) const = 0;
  virtual Flow attend_backward(const at::Tensor& qkv_rd, const Attention& forward, const at::Tensor& dout_rd, const Sequences& s) const = 0;

  // Sum of the loss over all elements as a scalar double on the device; dprediction: the gradient of the mean.
  virtual at::Tensor loss(kernels::Loss kind, const at::Tensor& prediction_rd, const at::Tensor& wanted_rd, at::Tensor& dprediction_rd) const = 0;

  // u8 NHWC pixels to rows of patches [b N, 3 p p], order (channel, y, x), (u8 / 255 - mean) / std; inner.
  virtual at::Tensor patches(const at::Tensor& pixels, int64_t patch_size, const float mean[3], const float std[3]) const = 0;

  const Layout& layout() const { return layout_; }

 private:
  const Layout& layout_;
};

// In place of a precision: bf16, with E4M3 operands (one scale a tensor, e4m3.h) for the products of blocks. Forward only.
inline constexpr const char* kFp8 = "fp8";
// precision: function.precision, or kFp8. layout must outlive it.
std::unique_ptr<Ops> make_cpu_ops(const Layout& layout, const std::string& precision);

}  // namespace tessera::model
