#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "worker/model/attention.h"
#include "worker/model/kernels.h"

namespace tessera::model::kernels {
namespace {

at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

struct Backward {
  at::Tensor dx, dgamma, dbeta;
};
Backward ours(const at::Tensor& x, const at::Tensor& dy, const at::Tensor& gamma, const at::Tensor& residual, double eps, int64_t split) {
  const int64_t rows = x.size(0), d = x.size(1), chunks = chunk_count(rows);
  const auto [out, mean, rstd] = at::native_layer_norm(x, {d}, gamma, at::zeros({d}), eps);
  Backward b{at::empty_like(x), at::empty({d}), at::empty({d})};
  at::Tensor scratch = at::empty({chunks * 2 * d});
  const LayerNormBackward args{x.const_data_ptr<float>(), dy.const_data_ptr<float>(), mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), gamma.const_data_ptr<float>(),
                               residual.defined() ? residual.const_data_ptr<float>() : nullptr, rows, d, b.dx.mutable_data_ptr<float>(), b.dgamma.mutable_data_ptr<float>(),
                               b.dbeta.mutable_data_ptr<float>(), scratch.mutable_data_ptr<float>()};
  layer_norm_backward_chunks(args, split, chunks);
  layer_norm_backward_chunks(args, 0, split);
  layer_norm_backward_finish(args);
  return b;
}

TEST(LayerNormBackward, AgreesWithATen) {
  for (const int64_t d : {12, 16, 36, 48, 132, 384})
    for (const int64_t rows : {1, 63, 64, 65, 200}) {
      SCOPED_TRACE("rows " + std::to_string(rows) + " d " + std::to_string(d));
      const at::Tensor x = random({rows, d}, 1) * 3 + 1, dy = random({rows, d}, 2), gamma = random({d}, 3), residual = random({rows, d}, 4);
      const auto [out, mean, rstd] = at::native_layer_norm(x, {d}, gamma, at::zeros({d}), 1e-6);
      const auto [dx, dgamma, dbeta] = at::native_layer_norm_backward(dy, x, {d}, mean, rstd, gamma, at::zeros({d}), {true, true, true});
      const Backward b = ours(x, dy, gamma, {}, 1e-6, 0), skip = ours(x, dy, gamma, residual, 1e-6, 0);
      EXPECT_TRUE(b.dx.allclose(dx, 1e-5, 1e-5));
      EXPECT_TRUE(b.dgamma.allclose(dgamma, 1e-4, 1e-4));
      EXPECT_TRUE(b.dbeta.allclose(dbeta, 1e-4, 1e-4));
      EXPECT_TRUE(skip.dx.equal(residual + b.dx) || skip.dx.allclose(residual + b.dx, 1e-6, 1e-6));
    }
}

TEST(LayerNormBackward, AgreesWithFiniteDifferencesInDouble) {
  const int64_t rows = 3, d = 20;
  const double eps = 1e-6, h = 1e-5;
  const at::Tensor x = random({rows, d}, 1), dy = random({rows, d}, 2), gamma = random({d}, 3);
  const Backward b = ours(x, dy, gamma, {}, eps, 0);
  const auto value = [&](const at::Tensor& at_x, const at::Tensor& at_gamma) {
    return (at::layer_norm(at_x, {d}, at_gamma, {}, eps) * dy.to(at::kDouble)).sum().item<double>();
  };
  const at::Tensor xd = x.to(at::kDouble), gd = gamma.to(at::kDouble);
  for (int64_t i = 0; i < rows * d; i += 7) {
    at::Tensor step = at::zeros({rows * d}, at::kDouble);
    step[i] = h;
    const double slope = (value(xd + step.view({rows, d}), gd) - value(xd - step.view({rows, d}), gd)) / (2 * h);
    EXPECT_NEAR(b.dx.reshape(-1)[i].item<double>(), slope, 2e-5 * std::max(1.0, std::abs(slope)));
  }
  for (int64_t j = 0; j < d; j += 3) {
    at::Tensor step = at::zeros({d}, at::kDouble);
    step[j] = h;
    const double slope = (value(xd, gd + step) - value(xd, gd - step)) / (2 * h);
    EXPECT_NEAR(b.dgamma[j].item<double>(), slope, 2e-5 * std::max(1.0, std::abs(slope)));
  }
}

TEST(LayerNormBackward, BitsDoNotDependOnTheOrderOfChunks) {
  const at::Tensor x = random({300, 48}, 1), dy = random({300, 48}, 2), gamma = random({48}, 3);
  const Backward a = ours(x, dy, gamma, {}, 1e-6, 0), b = ours(x, dy, gamma, {}, 1e-6, 3);
  EXPECT_TRUE(a.dx.equal(b.dx) && a.dgamma.equal(b.dgamma) && a.dbeta.equal(b.dbeta));
}

TEST(Loss, AgreesWithATenInValueAndGradient) {
  for (const int64_t n : {1, 255, 256, 257, 5000}) {
    const at::Tensor p = (random({n}, 1) * 2).set_requires_grad(false), t = random({n}, 2) * 2, difference = (p - t).to(at::kDouble);
    at::Tensor gradient = at::empty({n});
    const auto run = [&](Loss kind) { return loss(kind, p.const_data_ptr<float>(), t.const_data_ptr<float>(), n, gradient.mutable_data_ptr<float>()) / double(n); };
    EXPECT_NEAR(run(Loss::kSmoothL1), at::smooth_l1_loss(p.to(at::kDouble), t.to(at::kDouble)).item<double>(), 1e-6);
    EXPECT_TRUE((gradient * double(n)).allclose(difference.clamp(-1, 1).to(at::kFloat), 1e-5, 1e-6));
    EXPECT_NEAR(run(Loss::kL1), difference.abs().mean().item<double>(), 1e-6);
    EXPECT_TRUE((gradient * double(n)).allclose(difference.sign().to(at::kFloat), 1e-5, 1e-6));
    EXPECT_NEAR(run(Loss::kL2), difference.square().mean().item<double>(), 1e-5);
    EXPECT_TRUE((gradient * double(n)).allclose((2 * difference).to(at::kFloat), 1e-5, 1e-5));
  }
}

TEST(Loss, NanStaysNan) {
  const float p[3] = {0, std::nanf(""), 1}, t[3] = {0, 0, 0};
  for (const Loss kind : {Loss::kSmoothL1, Loss::kL1, Loss::kL2}) {
    float gradient[3];
    EXPECT_TRUE(std::isnan(loss(kind, p, t, 3, gradient)));
    EXPECT_TRUE(std::isnan(gradient[1]));
    EXPECT_FALSE(std::isnan(gradient[0]));
  }
}

TEST(Patchify, IsTheConvolutionsInput) {
  const int64_t size = 6, patch = 3;
  std::vector<uint8_t> image(size_t(size * size * 3));
  for (size_t i = 0; i < image.size(); ++i) image[i] = uint8_t(i * 37);
  const float mean[3] = {.485f, .456f, .406f}, std[3] = {.229f, .224f, .225f};
  std::vector<float> out(4 * 27);
  patchify(image.data(), size, patch, mean, std, out.data());
  for (int64_t n = 0; n < 4; ++n)
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t y = 0; y < 3; ++y)
        for (int64_t x = 0; x < 3; ++x) {
          const float pixel = float(image[size_t((((n / 2) * 3 + y) * size + (n % 2) * 3 + x) * 3 + c)]);
          EXPECT_EQ(out[size_t(n * 27 + c * 9 + y * 3 + x)], (pixel / 255.0f - mean[c]) / std[c]);
        }
}

// Against softmax(Q K^T / sqrt(e)) V in fp64 by autograd's formulas, for sizes around the kernel's lanes and blocks.
TEST(Kernels, AttentionAgreesWithFp64) {
  for (const auto& [n, e] : std::vector<std::pair<int64_t, int64_t>>{{1, 4}, {7, 16}, {16, 24}, {49, 16}, {64, 24}, {65, 33}, {130, 64}, {196, 80}}) {
    SCOPED_TRACE(std::to_string(n) + " tokens of " + std::to_string(e));
    const int64_t b = 2, h = 3;
    const at::Tensor qkv = random({b * n, 3 * h * e}, 1).mul_(1.5), dout = random({b * n, h * e}, 2);
    const auto split = [&](const at::Tensor& packed, int64_t parts) { return packed.to(at::kDouble).view({b, n, parts, h, e}).permute({2, 0, 3, 1, 4}); };
    const at::Tensor q = split(qkv, 3)[0], k = split(qkv, 3)[1], v = split(qkv, 3)[2], d = split(dout, 1)[0];
    const double scale = 1 / std::sqrt(double(e));
    const at::Tensor logits = q.matmul(k.transpose(-1, -2)) * scale, p = logits.softmax(-1), o = p.matmul(v);
    const at::Tensor dp = d.matmul(v.transpose(-1, -2)), ds = p * (dp - (p * dp).sum(-1, true)) * scale;
    const at::Tensor wanted = at::stack({ds.matmul(k), ds.transpose(-1, -2).matmul(q), p.transpose(-1, -2).matmul(d)});  // dq, dk, dv
    const AttentionShape shape{b, h, n, e};
    std::vector<float> scratch(size_t(attention_scratch_floats(shape)), NAN);
    at::Tensor out = at::full({b * n, h * e}, NAN), lse = at::full({b, h, n}, NAN), dqkv = at::full({b * n, 3 * h * e}, NAN);
    const auto forward = [&](int64_t first, int64_t last) {
      attention_forward(shape, qkv.const_data_ptr<float>(), first, last, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), scratch.data());
    };
    forward(0, 4), forward(4, 6);
    attention_backward(shape, qkv.const_data_ptr<float>(), out.const_data_ptr<float>(), lse.const_data_ptr<float>(), dout.const_data_ptr<float>(), 0, 6, dqkv.mutable_data_ptr<float>(), scratch.data());
    const auto close = [](const at::Tensor& got, const at::Tensor& want) { return (got - want).abs().max().item<double>() <= 2e-6 * std::max(1.0, want.abs().max().item<double>()); };
    EXPECT_TRUE(close(split(out, 1)[0], o));
    EXPECT_TRUE(close(lse.to(at::kDouble), logits.logsumexp(-1)));
    EXPECT_TRUE(close(split(dqkv, 3), wanted));
    at::Tensor again = at::full_like(out, NAN);  // pairs in one call, in the other order, without lse: equal bits
    attention_forward(shape, qkv.const_data_ptr<float>(), 0, 6, again.mutable_data_ptr<float>(), nullptr, scratch.data());
    EXPECT_TRUE(again.equal(out));
  }
}

// Tokens whose answer nobody reads change nothing for the others: with no gradient coming back to them, theirs is that of
// keys and values alone.
TEST(Kernels, AttentionOfTheTokensThatAreRead) {
  for (const auto& [n, unread] : std::vector<std::pair<int64_t, int64_t>>{{5, 4}, {49, 21}, {110, 69}}) {
    SCOPED_TRACE(std::to_string(unread) + " of " + std::to_string(n) + " tokens unread");
    const int64_t b = 2, h = 3, e = 24, m = n - unread;
    const AttentionShape all{b, h, n, e}, some{b, h, n, e, unread};
    const at::Tensor qkv = random({b * n, 3 * h * e}, 1).mul_(1.5), read = random({b * m, h * e}, 2);
    at::Tensor dout = at::zeros({b, n, h * e});
    dout.narrow(1, unread, m).copy_(read.view({b, m, h * e}));
    std::vector<float> scratch(size_t(attention_scratch_floats(all)), NAN);
    const auto run = [&](const AttentionShape& shape, const at::Tensor& d) {
      at::Tensor out = at::full({b * shape.queries(), h * e}, NAN), lse = at::full({b, h, shape.queries()}, NAN), dqkv = at::full({b * n, 3 * h * e}, NAN);
      attention_forward(shape, qkv.const_data_ptr<float>(), 0, b * h, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), scratch.data());
      attention_backward(shape, qkv.const_data_ptr<float>(), out.const_data_ptr<float>(), lse.const_data_ptr<float>(), d.const_data_ptr<float>(), 0, b * h, dqkv.mutable_data_ptr<float>(), scratch.data());
      return std::vector<at::Tensor>{out, dqkv};
    };
    const auto whole = run(all, dout), part = run(some, read);
    EXPECT_TRUE(part[0].view({b, m, -1}).equal(whole[0].view({b, n, -1}).narrow(1, unread, m)));
    EXPECT_TRUE(part[1].equal(whole[1]));
    EXPECT_EQ(part[1].view({b, n, -1}).narrow(1, 0, unread).narrow(2, 0, h * e).abs().max().item<float>(), 0.0f);
  }
}

// In halves: arrays are rounded once, and on CPUs that multiply bfloat16 the probabilities and their gradient too. Odd
// numbers of tokens and queries leave a pair's second half empty.
TEST(Kernels, AttentionOfHalvesIsFp64sWithinTheirRounding) {
  struct Case {
    int64_t n, e, unread;
  };
  for (const auto& [n, e, unread] : std::vector<Case>{{1, 4, 0}, {7, 16, 0}, {8, 6, 3}, {49, 16, 0}, {65, 33, 0}, {83, 128, 50}, {84, 64, 51}, {130, 40, 0}, {196, 80, 0}}) {
    SCOPED_TRACE(std::to_string(n) + " tokens of " + std::to_string(e) + ", " + std::to_string(unread) + " unread");
    const int64_t b = 2, h = 3, m = n - unread;
    const at::Tensor qkv = random({b * n, 3 * h * e}, 1).mul_(1.5).to(at::kBFloat16), dout = random({b * m, h * e}, 2).to(at::kBFloat16);
    const auto split = [&](const at::Tensor& packed, int64_t tokens, int64_t parts) { return packed.to(at::kDouble).view({b, tokens, parts, h, e}).permute({2, 0, 3, 1, 4}); };
    const at::Tensor q = split(qkv, n, 3)[0].narrow(2, unread, m), k = split(qkv, n, 3)[1], v = split(qkv, n, 3)[2], d = split(dout, m, 1)[0];
    const double scale = 1 / std::sqrt(double(e));
    const at::Tensor logits = q.matmul(k.transpose(-1, -2)) * scale, p = logits.softmax(-1), o = p.matmul(v);
    const at::Tensor dp = d.matmul(v.transpose(-1, -2)), ds = p * (dp - (p * dp).sum(-1, true)) * scale;
    const at::Tensor dq = at::cat({at::zeros({b, h, unread, e}, at::kDouble), ds.matmul(k)}, 2);
    const at::Tensor wanted = at::stack({dq, ds.transpose(-1, -2).matmul(q), p.transpose(-1, -2).matmul(d)});
    const AttentionShape shape{b, h, n, e, unread};
    std::vector<float> scratch(size_t(attention_scratch_floats(shape)), NAN);
    at::Tensor out = at::full({b * m, h * e}, NAN, at::kBFloat16), lse = at::full({b, h, m}, NAN), dqkv = at::full({b * n, 3 * h * e}, NAN, at::kBFloat16);
    const auto halves = [](const at::Tensor& t) { return static_cast<const Half*>(t.const_data_ptr()); };
    const auto writable = [](at::Tensor& t) { return static_cast<Half*>(t.mutable_data_ptr()); };
    attention_forward(shape, halves(qkv), 0, 4, writable(out), lse.mutable_data_ptr<float>(), scratch.data());
    attention_forward(shape, halves(qkv), 4, 6, writable(out), lse.mutable_data_ptr<float>(), scratch.data());
    attention_backward(shape, halves(qkv), halves(out), lse.const_data_ptr<float>(), halves(dout), 0, 6, writable(dqkv), scratch.data());
    const auto error = [](const at::Tensor& got, const at::Tensor& want) { return ((got - want).norm() / want.norm().clamp_min(1e-9)).item<double>(); };
    EXPECT_LE(error(split(out, m, 1)[0], o), 4e-3);
    EXPECT_LE((lse.to(at::kDouble) - logits.logsumexp(-1)).abs().max().item<double>(), 2e-6 * 16);
    const at::Tensor got = split(dqkv, n, 3);
    for (int part = n > 1 ? 0 : 2; part < 3; ++part) EXPECT_LE(error(got[part], wanted[part]), 1e-2) << part;  // dq and dk of one token are zero
    EXPECT_EQ(unread > 0 ? got[0].narrow(2, 0, unread).abs().max().item<double>() : 0, 0);
    at::Tensor again = at::full_like(out, NAN);
    attention_forward(shape, halves(qkv), 0, 6, writable(again), nullptr, scratch.data());
    EXPECT_TRUE(again.equal(out));
  }
}

// Large logits neither overflow nor lose the largest; a NaN stays one.
TEST(Kernels, AttentionOfExtremes) {
  const AttentionShape shape{1, 1, 5, 16};
  at::Tensor qkv = random({5, 48}, 3).mul_(300.0), out = at::empty({5, 16}), lse = at::empty({1, 1, 5});
  std::vector<float> scratch(size_t(attention_scratch_floats(shape)));
  attention_forward(shape, qkv.const_data_ptr<float>(), 0, 1, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), scratch.data());
  EXPECT_TRUE(out.isfinite().all().item<bool>());
  EXPECT_TRUE(lse.isfinite().all().item<bool>());
  qkv[2][3] = NAN;
  attention_forward(shape, qkv.const_data_ptr<float>(), 0, 1, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), scratch.data());
  EXPECT_TRUE(out[2].isnan().any().item<bool>());
}

}  // namespace
}  // namespace tessera::model::kernels
