// The operations on a CUDA device: products by cuBLAS, attention by a pinned fused kernel, the rest by our own.
//
// bf16 and published: the residual stream, norms and losses in fp32; products read bf16 and sum in fp32; weight gradients
// leave the product in fp32, straight into their bucket. (The published autocast does the same, but for weight gradients,
// which it rounds to bf16.) fp32: everything in true fp32, TF32 off. fp8 (the target's pass): as bf16, but a block's products
// read 8-bit floats with one scale a tensor, and still give bf16 and sum in fp32.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <array>

#include "worker/cuda/cuda_ops.h"
#include "worker/cuda/kernels.h"

namespace tessera::cuda {
namespace {

using namespace tessera::model;

constexpr float kEps = 1e-6f, kTargetEps = 1e-5f;

Stream stream() { return at::cuda::getCurrentCUDAStream().stream(); }
template <typename T>
const T* in(const at::Tensor& t) {
  return t.defined() ? reinterpret_cast<const T*>(t.const_data_ptr()) : nullptr;
}
template <typename T>
T* out(const at::Tensor& t) {
  return t.defined() ? reinterpret_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

// T: Half or float, the inner type.
template <typename T>
class CudaOps : public Ops {
 public:
  CudaOps(const Layout& layout, c10::Device device, bool e4m3) : Ops(layout), floats_(at::TensorOptions().dtype(at::kFloat).device(device)), e4m3_(e4m3) {}

  at::Tensor bring(const at::Tensor& host) const override { return host.to(floats_.device(), host.scalar_type(), /*non_blocking=*/true); }

  at::Tensor linear(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, LinearFor use) const override {
    const at::Tensor y_rd = product(w, x_rd, p, use != LinearFor::kStream);
    return use == LinearFor::kStream ? y_rd.to(at::kFloat) : y_rd;
  }

  Joined linear_add_norm(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, const at::Tensor& residual_rd, const NextNorm* next) const override {
    const at::Tensor y_rd = product(w, x_rd, p, true);
    if (!next) return {at::add(residual_rd, y_rd), {}};
    Joined joined;
    joined.sum_rd = at::empty(y_rd.sizes(), floats_);
    joined.norm = add_norm(y_rd, residual_rd, affine(w, next->places), kEps, joined.sum_rd, next->use, true);
    return joined;
  }

  Hidden linear_gelu(const Weights& w, const at::Tensor& x_rd, LinearPlaces p) const override {
    Hidden hidden;
    hidden.before_rd = product(w, x_rd, p, true);
    hidden.after_rd = at::empty_like(hidden.before_rd);
    gelu_forward(in<T>(hidden.before_rd), out<T>(hidden.after_rd), hidden.before_rd.numel(), stream());
    return hidden;
  }

  at::Tensor linear_backward(const Weights& w, const at::Tensor& x_rd, const Flow& dy, LinearPlaces p, FlatBuffers& gradient, bool want_dx) const override {
    const at::Tensor dy_rd = half_of(dy);
    weight_gradient(x_rd, dy_rd, dy, p, gradient);
    return want_dx ? at::mm(dy_rd, compute_weight(w, p.weight)) : at::Tensor();
  }

  Hidden kept(const Hidden& hidden) const override { return {hidden.before_rd, {}, {}}; }
  // The kernel that makes the gradient before the GELU reads what the GELU read, so it makes the GELU's output again: a
  // quarter of a block's memory for one more write.
  Flow gelu_linear_backward(const Weights& w, const Hidden& kept, const Flow& dy, LinearPlaces p, FlatBuffers& gradient) const override {
    const at::Tensor dy_rd = half_of(dy), dafter_rd = at::mm(dy_rd, compute_weight(w, p.weight));
    const at::Tensor dbefore_rd = at::empty_like(kept.before_rd), after_rd = at::empty_like(kept.before_rd);
    const int64_t rows = dbefore_rd.size(0), d = dbefore_rd.size(1);
    const at::Tensor scratch = at::empty({column_scratch(rows, d)}, floats_), sum = at::empty({d}, floats_);
    columns(GeluBackwardPair<T>{in<T>(dafter_rd), in<T>(kept.before_rd), out<T>(dbefore_rd), out<T>(after_rd), d}, rows, d, out<float>(scratch), out<float>(sum), stream());
    weight_gradient(after_rd, dy_rd, dy, p, gradient);
    return flow(dbefore_rd, sum);
  }

  Norm norm(const Weights& w, const at::Tensor& x_rd, NormPlaces p, NormFor use) const override { return add_norm({}, x_rd, affine(w, p), kEps, {}, use, true); }

  Flow norm_backward(const Weights& w, const at::Tensor& x_rd, const Norm& forward, const at::Tensor& dy_rd, const at::Tensor& residual_rd, NormPlaces p,
                     FlatBuffers& gradient) const override {
    const int64_t rows = x_rd.size(0), d = x_rd.size(1);
    Flow dx(at::empty_like(x_rd), kHalf ? at::empty(x_rd.sizes(), floats_.dtype(at::kBFloat16)) : at::Tensor(), at::empty({d}, floats_));
    const at::Tensor scratch = at::empty({norm_backward_scratch(rows, d)}, floats_);
    const auto run = [&](auto inner_type) {
      using U = decltype(inner_type);
      const NormBackward<U> args{in<float>(x_rd), in<U>(dy_rd), in<float>(forward.mean_r), in<float>(forward.rstd_r), in<float>(weight(w.full, p.weight)), in<float>(residual_rd),
                                 rows, d, out<float>(dx.full_rd), out<Half>(dx.half_rd), out<float>(scratch)};
      cuda::norm_backward(args, out<float>(weight(gradient, p.weight)), out<float>(weight(gradient, p.bias)), out<float>(dx.sum_d), stream());
    };
    if (dy_rd.scalar_type() == at::kFloat) run(float{});
    else run(Half{});
    return dx;
  }

  at::Tensor target_norm(const at::Tensor& x_rd) const override { return add_norm({}, x_rd, {}, kTargetEps, {}, NormFor::kStream, false).out_rd; }

  Attention attend(const at::Tensor& qkv_rd, const Sequences& s, bool keep) const override {
    const at::Tensor qkv = split(qkv_rd, s);
    const at::Tensor q = queries(qkv, s), k = qkv.select(0, 1), v = qkv.select(0, 2);
    Attention a;
    at::Tensor answer_bhne;
    if constexpr (kHalf) {
      at::Tensor unused_q, unused_k, debug;
      c10::SymInt most_q, most_k;
      std::tie(answer_bhne, a.lse_bhn, unused_q, unused_k, most_q, most_k, a.seed, a.offset, debug) = at::_scaled_dot_product_flash_attention(q, k, v);
    } else {
      std::tie(answer_bhne, a.lse_bhn, a.seed, a.offset) = at::_scaled_dot_product_efficient_attention(q, k, v, std::nullopt, keep);
    }
    a.out_rd = rows_of(answer_bhne);
    return a;
  }

  Flow attend_backward(const at::Tensor& qkv_rd, const Attention& a, const at::Tensor& dout_rd, const Sequences& s) const override {
    const int64_t rows = qkv_rd.size(0), d = qkv_rd.size(1) / 3, n = rows / s.count, read = n - s.unread;
    const at::Tensor qkv = split(qkv_rd, s);
    const at::Tensor q = queries(qkv, s), k = qkv.select(0, 1), v = qkv.select(0, 2);
    const auto per_head = [&](const at::Tensor& x_rd) { return x_rd.view({s.count, read, s.heads, d / s.heads}).transpose(1, 2); };
    at::Tensor dq, dk, dv;
    if constexpr (kHalf) {
      std::tie(dq, dk, dv) = at::_scaled_dot_product_flash_attention_backward(per_head(dout_rd), q, k, v, per_head(a.out_rd), a.lse_bhn, {}, {}, read, n, 0.0, false, a.seed, a.offset);
    } else {
      at::Tensor no_bias;
      std::tie(dq, dk, dv, no_bias) = at::_scaled_dot_product_efficient_attention_backward(per_head(dout_rd), q, k, v, {}, per_head(a.out_rd), a.lse_bhn, a.seed, a.offset, 0.0,
                                                                                           std::array<bool, 4>{true, true, true, false});
    }
    dq = with_unread(rows_of(dq), s), dk = rows_of(dk), dv = rows_of(dv);
    const at::Tensor dqkv_rd = at::empty_like(qkv_rd), scratch = at::empty({column_scratch(rows, 3 * d)}, floats_), sum = at::empty({3 * d}, floats_);
    columns(PackPair<T>{{in<T>(dq), in<T>(dk), in<T>(dv)}, d, out<T>(dqkv_rd)}, rows, 3 * d, out<float>(scratch), out<float>(sum), stream());
    return flow(dqkv_rd, sum);
  }

  at::Tensor loss(kernels::Loss kind, const at::Tensor& prediction_rd, const at::Tensor& wanted_rd, at::Tensor& dprediction_rd) const override {
    const int64_t n = prediction_rd.numel();
    const at::Tensor parts = at::empty({loss_blocks(n)}, floats_.dtype(at::kDouble)), sum = at::empty({}, floats_.dtype(at::kDouble));
    const LossKind which = kind == kernels::Loss::kL1 ? LossKind::kL1 : kind == kernels::Loss::kL2 ? LossKind::kL2 : LossKind::kSmoothL1;
    cuda::loss({which, in<float>(prediction_rd), in<float>(wanted_rd), n, out<float>(dprediction_rd), out<double>(parts)}, out<double>(sum), stream());
    return sum;
  }

  at::Tensor patches(const at::Tensor& pixels, int64_t patch_size, const float mean[3], const float std[3]) const override {
    const int64_t size = pixels.size(1), count = pixels.size(0) * (size / patch_size) * (size / patch_size);
    const at::Tensor rows_rd = at::empty({count, 3 * patch_size * patch_size}, inner_options());
    launch(Patchify<T>{in<uint8_t>(pixels), nullptr, in<float>(table(mean, std)), size, patch_size, out<T>(rows_rd)}, count, stream());
    return rows_rd;
  }

 private:
  static constexpr bool kHalf = std::is_same_v<T, Half>;
  struct Affine {
    at::Tensor gamma, beta;
  };
  at::TensorOptions inner_options() const { return floats_.dtype(kHalf ? at::kBFloat16 : at::kFloat); }
  at::Tensor inner(const at::Tensor& x) const { return kHalf ? x.to(at::kBFloat16) : x; }
  Affine affine(const Weights& w, NormPlaces p) const { return {weight(w.full, p.weight), weight(w.full, p.bias)}; }
  // As the products read it. A role without twins (evaluation of a loaded model) is rounded on the way.
  at::Tensor compute_weight(const Weights& w, int place) const { return kHalf && w.half ? weight(*w.half, place) : inner(weight(w.full, place)); }
  // in_block: not an embedding.
  at::Tensor product(const Weights& w, const at::Tensor& x_rd, LinearPlaces p, bool in_block) const {
    if (e4m3_ && in_block) {
      const Quantised x = quantised(x_rd), y = quantised(weight(w.full, p.weight));
      return at::_scaled_mm(x.numbers, y.numbers.t(), x.scale, y.scale, compute_weight(w, p.bias), {}, at::kBFloat16, /*use_fast_accum=*/false);
    }
    return at::addmm(compute_weight(w, p.bias), inner(x_rd), compute_weight(w, p.weight).t());
  }
  struct Quantised {
    at::Tensor numbers, scale;
  };
  Quantised quantised(const at::Tensor& x) const {
    Quantised q{at::empty(x.sizes(), floats_.dtype(at::kFloat8_e4m3fn)), at::empty({}, floats_)};
    const at::Tensor scratch = at::empty({kPartsOfLargest}, floats_);
    const auto run = [&](auto type) { to_e4m3(in<decltype(type)>(x), x.numel(), out<uint32_t>(scratch), out<float>(q.scale), out<uint8_t>(q.numbers), stream()); };
    if (x.scalar_type() == at::kFloat) run(float{});
    else run(Half{});
    return q;
  }
  static Flow flow(const at::Tensor& inner_rd, const at::Tensor& sum_d) { return kHalf ? Flow({}, inner_rd, sum_d) : Flow(inner_rd, {}, sum_d); }

  Norm add_norm(const at::Tensor& addend_rd, const at::Tensor& residual_rd, const Affine& affine, float eps, const at::Tensor& sum_rd, NormFor use, bool keep) const {
    const int64_t rows = residual_rd.size(0), d = residual_rd.size(1);
    Norm norm{at::empty({rows, d}, use == NormFor::kProduct ? inner_options() : floats_), keep ? at::empty({rows}, floats_) : at::Tensor(), keep ? at::empty({rows}, floats_) : at::Tensor()};
    const auto run = [&](auto out_type) {
      using N = decltype(out_type);
      cuda::add_norm(AddNorm<T, N>{in<T>(addend_rd), in<float>(residual_rd), in<float>(affine.gamma), in<float>(affine.beta), d, eps, out<float>(sum_rd), out<N>(norm.out_rd),
                                   out<float>(norm.mean_r), out<float>(norm.rstd_r)},
                     rows, stream());
    };
    if (use == NormFor::kProduct) run(T{});
    else run(float{});
    return norm;
  }

  at::Tensor half_of(const Flow& dy) const { return dy.half_rd.defined() ? dy.half_rd : inner(dy.full_rd); }
  // dW in fp32 and db, into their places.
  void weight_gradient(const at::Tensor& x_rd, const at::Tensor& dy_rd, const Flow& dy, LinearPlaces p, FlatBuffers& gradient) const {
    at::Tensor dw = weight(gradient, p.weight), db = weight(gradient, p.bias);
    if (dy.sum_d.defined()) db.copy_(dy.sum_d);
    else sum_columns(dy.full_rd.defined() ? dy.full_rd : dy_rd, db);
    if constexpr (kHalf) at::mm_out(dw, dy_rd.t(), inner(x_rd), at::kFloat);
    else at::mm_out(dw, dy_rd.t(), x_rd);
  }

  void sum_columns(const at::Tensor& rows_rd, const at::Tensor& sum_d) const {
    const int64_t rows = rows_rd.size(0), d = rows_rd.size(1);
    const at::Tensor scratch = at::empty({column_scratch(rows, d)}, floats_);
    if (rows_rd.scalar_type() == at::kFloat) columns(ReadPair<float>{in<float>(rows_rd), d}, rows, d, out<float>(scratch), out<float>(sum_d), stream());
    else columns(ReadPair<Half>{in<Half>(rows_rd), d}, rows, d, out<float>(scratch), out<float>(sum_d), stream());
  }

  // [r, 3 d] as [3, b, h, n, e], without a copy.
  static at::Tensor split(const at::Tensor& qkv_rd, const Sequences& s) {
    return qkv_rd.view({s.count, qkv_rd.size(0) / s.count, 3, s.heads, qkv_rd.size(1) / 3 / s.heads}).permute({2, 0, 3, 1, 4});
  }
  // [b, h, n - unread, e].
  static at::Tensor queries(const at::Tensor& qkv, const Sequences& s) { return qkv.select(0, 0).narrow(2, s.unread, qkv.size(3) - s.unread); }
  // [b, h, n, e] to rows [b n, h e]; no copy for what the attention kernels return.
  static at::Tensor rows_of(const at::Tensor& x_bhne) { return x_bhne.transpose(1, 2).reshape({x_bhne.size(0) * x_bhne.size(2), -1}).contiguous(); }

  // (v / 255 - mean) / std of every byte and channel, computed on the host as the CPU does.
  const at::Tensor& table(const float mean[3], const float std[3]) const {
    std::array<float, 6> key{mean[0], mean[1], mean[2], std[0], std[1], std[2]};
    if (table_.defined() && key == table_key_) return table_;
    std::array<float, 768> values;
    for (int c = 0; c < 3; ++c)
      for (int v = 0; v < 256; ++v) values[size_t(c * 256 + v)] = (float(v) / 255.0f - mean[c]) / std[c];
    table_ = at::from_blob(values.data(), {768}, at::kFloat).to(floats_.device());
    table_key_ = key;
    return table_;
  }

  at::TensorOptions floats_;
  bool e4m3_;
  mutable at::Tensor table_;
  mutable std::array<float, 6> table_key_{};
};

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(const Layout& layout, const std::string& precision, c10::Device device) {
  if (precision == "fp32") return std::make_unique<CudaOps<float>>(layout, device, false);
  return std::make_unique<CudaOps<Half>>(layout, device, precision == kFp8);
}

}  // namespace tessera::cuda
