// The operations on a CPU: LibTorch's products, our loops for what it does slowly, apart, or not in a fixed order.
//
// With bfloat16 products everything that a product reads or gives is stored in bfloat16 and each array is rounded once;
// the residual stream, LayerNorm, GELU, softmax, sums and their gradients are computed in fp32, as the published code's
// autocast does. (Attention's products: attention.h.) Gradients of weights come out of the product rounded to bfloat16
// (LibTorch has no product of halves with an fp32 result on CPUs; autocast's are the same) and are summed over tiles in fp32.
//
// With products of 8-bit floats (kFp8) their operands are what 8-bit floats hold, and oneDNN multiplies them as bfloat16 and
// sums in fp32: the arithmetic of a GPU's product of 8-bit floats, without its speed.
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scalar_tensor.h>
#include <algorithm>

#include "worker/model/attention.h"
#include "worker/model/e4m3.h"
#include "worker/model/ops.h"
#include "worker/model/parallel.h"
#include "worker/model/row_kernels.h"

namespace tessera::model {
namespace {

constexpr double kEps = 1e-6;
constexpr double kTargetEps = 1e-5;      // functional layer_norm's default: the published target normalisation
constexpr int64_t kPairsPerTask = 8;     // (sequence, head) pairs
constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kElementsPerTask = 65536;

bool is_half(const at::Tensor& x) { return x.scalar_type() == at::kBFloat16; }
const float* floats(const at::Tensor& x) { return x.const_data_ptr<float>(); }
float* floats(at::Tensor& x) { return x.mutable_data_ptr<float>(); }
const kernels::Half* halves(const at::Tensor& x) { return static_cast<const kernels::Half*>(x.const_data_ptr()); }
kernels::Half* halves(at::Tensor& x) { return static_cast<kernels::Half*>(x.mutable_data_ptr()); }
kernels::In in(const at::Tensor& x) { return is_half(x) ? kernels::In{nullptr, halves(x)} : kernels::In{floats(x), nullptr}; }
kernels::Out out(at::Tensor& x) { return is_half(x) ? kernels::Out{nullptr, halves(x)} : kernels::Out{floats(x), nullptr}; }

at::Tensor make(at::IntArrayRef shape, bool half) { return at::empty(shape, at::TensorOptions().dtype(half ? at::kBFloat16 : at::kFloat)); }

at::Tensor rounded(const at::Tensor& x) {
  if (is_half(x)) return x;
  at::Tensor y = make(x.sizes(), true);
  const at::Tensor from = x.contiguous();
  at::parallel_for(0, x.numel(), kElementsPerTask, [&](int64_t first, int64_t last) { kernels::round_to_half(floats(from), halves(y), first, last); });
  return y;
}

// As 8-bit floats with one scale would hold it, in bfloat16.
at::Tensor quantised(const at::Tensor& x) {
  at::Tensor y = make(x.sizes(), true);
  const at::Tensor from = x.contiguous();
  std::vector<uint32_t> largest(size_t((x.numel() + kElementsPerTask - 1) / kElementsPerTask));
  at::parallel_for(0, int64_t(largest.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) largest[size_t(i)] = kernels::largest_magnitude(in(from), i * kElementsPerTask, std::min(x.numel(), (i + 1) * kElementsPerTask));
  });
  const float scale = e4m3::scale_of(*std::max_element(largest.begin(), largest.end()));
  at::parallel_for(0, x.numel(), kElementsPerTask, [&](int64_t first, int64_t last) { kernels::round_to_e4m3(in(from), scale, halves(y), first, last); });
  return y;
}

kernels::AttentionShape attention_shape(const at::Tensor& qkv_rd, const Sequences& s) { return {s.count, s.heads, qkv_rd.size(0) / s.count, qkv_rd.size(1) / 3 / s.heads, s.unread}; }

// Sums of a gradient over its rows into sum_d; the rounded gradient when asked for.
at::Tensor sum_rows(const at::Tensor& dy_rd, bool round, float* sum_d) {
  const int64_t rows = dy_rd.size(0), d = dy_rd.size(1), chunks = kernels::chunk_count(rows);
  at::Tensor half_rd = round && !is_half(dy_rd) ? make({rows, d}, true) : at::Tensor(), scratch = make({chunks, d}, false);
  const kernels::SumRows args{in(dy_rd), rows, d, half_rd.defined() ? halves(half_rd) : nullptr, floats(scratch)};
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) { kernels::sum_rows_chunks(args, first, last); });
  kernels::add_chunks(floats(scratch), chunks, d, sum_d);
  return half_rd.defined() ? half_rd : dy_rd;
}

// kE4m3: those of blocks read 8-bit floats, the patch embedding's bfloat16.
enum class Products { kFloat, kHalf, kE4m3 };

class CpuOps : public Ops {
 public:
  CpuOps(const Layout& layout, Products products) : Ops(layout), half_(products != Products::kFloat), e4m3_(products == Products::kE4m3) {}

  at::Tensor linear(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, LinearFor use) const override {
    if (use == LinearFor::kAttention && e4m3_) return product(w, x_rd, p).add_(half_weight(w, p.bias));
    const at::Tensor y_rd = half_ ? at::addmm(half_weight(w, p.bias), rounded(x_rd), half_weight(w, p.weight).t()) : at::addmm(weight(w.full, p.bias), x_rd, weight(w.full, p.weight).t());
    return use == LinearFor::kStream ? y_rd.to(at::kFloat) : y_rd;
  }

  Joined linear_add_norm(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, const at::Tensor& residual_rd, const NextNorm* next) const override {
    Joined joined;
    at::Tensor added_rd = product(w, x_rd, p);
    joined.sum_rd = is_half(added_rd) ? make(added_rd.sizes(), false) : added_rd;
    norm_rows(w, residual_rd, added_rd, floats(weight(w.full, p.bias)), joined, next);
    return joined;
  }

  Hidden linear_gelu(const Weights& w, const at::Tensor& x_rd, LinearPlaces p) const override {
    Hidden hidden;
    hidden.before_rd = product(w, x_rd, p);
    hidden.after_rd = at::empty_like(hidden.before_rd);
    hidden.bias_d = weight(w.full, p.bias);
    const int64_t rows = hidden.before_rd.size(0), d = hidden.before_rd.size(1);
    const kernels::Gelu args{in(hidden.before_rd), floats(std::as_const(hidden.bias_d)), d, out(hidden.after_rd)};
    at::parallel_for(0, rows, kRowsPerTask, [&](int64_t first, int64_t last) { kernels::gelu(args, first, last); });
    return hidden;
  }

  at::Tensor linear_backward(const Weights& w, const at::Tensor& x_rd, const Flow& dy, LinearPlaces p, FlatBuffers& gradient, bool want_dx) const override {
    at::Tensor dw = weight(gradient, p.weight), db = weight(gradient, p.bias);
    at::Tensor dy_rd = half_ && dy.half_rd.defined() ? dy.half_rd : dy.full_rd;
    if (dy.sum_d.defined()) db.copy_(dy.sum_d);
    else dy_rd = sum_rows(dy_rd, half_, floats(db));
    if (half_) {
      dy_rd = rounded(dy_rd);
      dw.copy_(at::mm(dy_rd.t(), rounded(x_rd)));
      return want_dx ? at::mm(dy_rd, half_weight(w, p.weight)) : at::Tensor();
    }
    at::mm_out(dw, dy_rd.t(), x_rd);
    return want_dx ? at::mm(dy_rd, weight(w.full, p.weight)) : at::Tensor();
  }

  Flow gelu_linear_backward(const Weights& w, const Hidden& hidden, const Flow& dy, LinearPlaces p, FlatBuffers& gradient) const override {
    at::Tensor d_rd = linear_backward(w, hidden.after_rd, dy, p, gradient, true);  // after the GELU, then before it
    const int64_t rows = d_rd.size(0), d = d_rd.size(1), chunks = kernels::chunk_count(rows);
    at::Tensor scratch = make({chunks, d}, false), sum_d = make({d}, false);
    const kernels::GeluBackward args{in(d_rd), in(hidden.before_rd), floats(hidden.bias_d), rows, d, out(d_rd), floats(scratch)};
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) { kernels::gelu_backward_chunks(args, first, last); });
    kernels::add_chunks(floats(scratch), chunks, d, floats(sum_d));
    return is_half(d_rd) ? Flow({}, d_rd, sum_d) : Flow(d_rd, {}, sum_d);
  }

  Norm norm(const Weights& w, const at::Tensor& x_rd, NormPlaces p, NormFor use) const override {
    Joined joined;
    const NextNorm next{p, use};
    norm_rows(w, x_rd, {}, nullptr, joined, &next);
    return joined.norm;
  }

  Flow norm_backward(const Weights& w, const at::Tensor& x_rd, const Norm& forward, const at::Tensor& dy_rd, const at::Tensor& residual_rd, NormPlaces p,
                     FlatBuffers& gradient) const override {
    const int64_t rows = x_rd.size(0), d = x_rd.size(1), chunks = kernels::chunk_count(rows);
    at::Tensor dx_rd = at::empty_like(x_rd), half_rd = half_ ? make(x_rd.sizes(), true) : at::Tensor(), scratch = make({chunks, 3, d}, false), sum_d = make({d}, false);
    at::Tensor dgamma = weight(gradient, p.weight), dbeta = weight(gradient, p.bias);
    const kernels::NormBackward args{floats(x_rd), in(dy_rd), floats(forward.mean_r), floats(forward.rstd_r), floats(weight(w.full, p.weight)),
                                     residual_rd.defined() ? floats(residual_rd) : nullptr, rows, d, floats(dx_rd), half_ ? halves(half_rd) : nullptr, floats(scratch)};
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) { kernels::norm_backward_chunks(args, first, last); });
    kernels::norm_backward_finish(args, floats(dgamma), floats(dbeta), floats(sum_d));
    return {dx_rd, half_rd, sum_d};
  }

  at::Tensor target_norm(const at::Tensor& x_rd) const override { return at::layer_norm(x_rd, {x_rd.size(1)}, {}, {}, kTargetEps); }

  Attention attend(const at::Tensor& qkv_rd, const Sequences& s, bool keep) const override {
    const kernels::AttentionShape shape = attention_shape(qkv_rd, s);
    Attention result;
    result.out_rd = at::empty({s.count * shape.queries(), qkv_rd.size(1) / 3}, qkv_rd.options());
    if (keep) result.lse_bhn = make({s.count, s.heads, shape.queries()}, false);
    float* lse = keep ? floats(result.lse_bhn) : nullptr;
    at::parallel_for(0, s.count * s.heads, kPairsPerTask, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(size_t(kernels::attention_scratch_floats(shape)));
      if (is_half(qkv_rd)) kernels::attention_forward(shape, halves(qkv_rd), first, last, halves(result.out_rd), lse, scratch.data());
      else kernels::attention_forward(shape, floats(qkv_rd), first, last, floats(result.out_rd), lse, scratch.data());
    });
    return result;
  }

  Flow attend_backward(const at::Tensor& qkv_rd, const Attention& forward, const at::Tensor& dout_rd, const Sequences& s) const override {
    const kernels::AttentionShape shape = attention_shape(qkv_rd, s);
    at::Tensor dqkv_rd = at::empty(qkv_rd.sizes(), qkv_rd.options());
    const float* lse = floats(forward.lse_bhn);
    at::parallel_for(0, s.count * s.heads, kPairsPerTask, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(size_t(kernels::attention_scratch_floats(shape)));
      if (is_half(qkv_rd)) kernels::attention_backward(shape, halves(qkv_rd), halves(forward.out_rd), lse, halves(dout_rd), first, last, halves(dqkv_rd), scratch.data());
      else kernels::attention_backward(shape, floats(qkv_rd), floats(forward.out_rd), lse, floats(dout_rd), first, last, floats(dqkv_rd), scratch.data());
    });
    return is_half(dqkv_rd) ? Flow({}, dqkv_rd) : Flow(dqkv_rd);
  }

  at::Tensor loss(kernels::Loss kind, const at::Tensor& prediction_rd, const at::Tensor& wanted_rd, at::Tensor& dprediction_rd) const override {
    const double sum = kernels::loss(kind, floats(prediction_rd), floats(wanted_rd), prediction_rd.numel(), floats(dprediction_rd));
    return at::scalar_tensor(sum, at::TensorOptions().dtype(at::kDouble));
  }

  at::Tensor patches(const at::Tensor& pixels, int64_t patch_size, const float mean[3], const float std[3]) const override {
    const int64_t b = pixels.size(0), size = pixels.size(1), count = (size / patch_size) * (size / patch_size), width = 3 * patch_size * patch_size;
    at::Tensor rows = make({b * count, width}, false);
    const uint8_t* from = pixels.const_data_ptr<uint8_t>();
    float* to = floats(rows);
    at::parallel_for(0, b, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) kernels::patchify(from + i * size * size * 3, size, patch_size, mean, std, to + i * count * width);
    });
    return half_ ? rounded(rows) : rows;
  }

 private:
  at::Tensor half_weight(const Weights& w, int place) const { return w.half ? weight(*w.half, place) : rounded(weight(w.full, place)); }

  // x W^T, in the type that products have, of a block's layer. The bias is left to whoever reads it: at::addmm copies it over the
  // whole result first.
  at::Tensor product(const Weights& w, const at::Tensor& x_rd, LinearPlaces p) const {
    if (e4m3_) return at::mm(quantised(x_rd), quantised(weight(w.full, p.weight)).t());
    if (half_) return at::mm(rounded(x_rd), half_weight(w, p.weight).t());
    return at::mm(x_rd, weight(w.full, p.weight).t());
  }

  // sum = residual + added + bias (undefined and null: just the residual), and the norm that reads it.
  void norm_rows(const Weights& w, const at::Tensor& residual_rd, const at::Tensor& added_rd, const float* bias, Joined& joined, const NextNorm* next) const {
    const int64_t rows = residual_rd.size(0), d = residual_rd.size(1);
    kernels::NormRows args{floats(residual_rd), added_rd.defined() ? in(added_rd) : kernels::In{}, bias, added_rd.defined() ? floats(joined.sum_rd) : nullptr, nullptr, nullptr, float(kEps), rows, d, {}, nullptr, nullptr};
    if (next) {
      joined.norm = {make({rows, d}, half_ && next->use == NormFor::kProduct), make({rows}, false), make({rows}, false)};
      args.gamma = floats(weight(w.full, next->places.weight)), args.beta = floats(weight(w.full, next->places.bias));
      args.out = out(joined.norm.out_rd), args.mean = floats(joined.norm.mean_r), args.rstd = floats(joined.norm.rstd_r);
    }
    at::parallel_for(0, rows, kRowsPerTask, [&](int64_t first, int64_t last) { kernels::norm_rows(args, first, last); });
  }

  bool half_, e4m3_;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(const Layout& layout, const std::string& precision) {
  return std::make_unique<CpuOps>(layout, precision == "fp32" ? Products::kFloat : precision == kFp8 ? Products::kE4m3 : Products::kHalf);
}

}  // namespace tessera::model
