// The 8-bit floats of the fp8 target pass: against LibTorch's own conversion, and what the pass makes of them.
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <cmath>
#include <limits>

#include "tests/unit/model/small_model.h"
#include "worker/model/e4m3.h"
#include "worker/model/ops.h"
#include "worker/model/row_kernels.h"

namespace tessera::model {
namespace {

TEST(E4m3, RoundsAsLibTorchDoes) {
  constexpr uint32_t kEnd = 0x43e00000;  // 448
  int64_t seen = 0;
  for (uint32_t bits = 0; bits <= kEnd; bits += bits < kEnd - 997 ? 997 : 1)
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const float x = e4m3::float_of(bits | sign);
      const c10::Float8_e4m3fn want(x);
      ASSERT_EQ(e4m3::encoded(x), want.x) << x;
      ASSERT_EQ(e4m3::rounded(x), float(want)) << x;
      ++seen;
    }
  EXPECT_GT(seen, 1'000'000);
  EXPECT_TRUE(std::isnan(e4m3::rounded(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_EQ(e4m3::encoded(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
}

TEST(E4m3, EveryNumberIsItselfAndTiesGoToTheEvenOne) {
  for (int code = 0; code < 0x7f; ++code) {
    const float here = float(c10::Float8_e4m3fn(uint8_t(code), c10::Float8_e4m3fn::from_bits()));
    EXPECT_EQ(e4m3::encoded(here), code);
    if (code == 0x7e) break;
    const float next = float(c10::Float8_e4m3fn(uint8_t(code + 1), c10::Float8_e4m3fn::from_bits())), tie = (here + next) / 2;
    EXPECT_EQ(e4m3::encoded(tie), code % 2 == 0 ? code : code + 1) << tie;
    EXPECT_EQ(e4m3::encoded(std::nextafter(tie, 0.0f)), code);
    EXPECT_EQ(e4m3::encoded(std::nextafter(tie, 1e3f)), code + 1);
  }
}

TEST(E4m3, TheScaleIsTheLeastPowerOfTwoThatFits) {
  const auto scale = [](float largest) { return e4m3::scale_of(e4m3::magnitude(largest)); };
  EXPECT_EQ(scale(448), 1);
  EXPECT_EQ(scale(std::nextafter(448.0f, 1e3f)), 2);
  EXPECT_EQ(scale(-224), 0.5f);
  EXPECT_EQ(scale(0), 1);
  for (float x = 1e-25f; x < 1e25f; x *= 1.37f) {
    EXPECT_LE(x / scale(x), 448);
    EXPECT_GT(x / scale(x), 224);
  }
  EXPECT_GT(scale(1e-45f), 0);
  EXPECT_LE(std::numeric_limits<float>::max() / scale(std::numeric_limits<float>::max()), 448 * std::pow(2.0f, 20));
  EXPECT_TRUE(std::isnan(scale(std::numeric_limits<float>::infinity())));
  EXPECT_TRUE(std::isnan(scale(std::numeric_limits<float>::quiet_NaN())));
}

TEST(E4m3, SixteenAtATimeAreTheSameNumbers) {
  const at::Tensor x = at::randn({5003}) * at::exp(at::randn({5003}) * 4), half = x.to(at::kBFloat16);
  for (const bool is_half : {false, true}) {
    const at::Tensor from = is_half ? half.to(at::kFloat) : x;
    const kernels::In in = is_half ? kernels::In{nullptr, static_cast<const kernels::Half*>(half.const_data_ptr())} : kernels::In{x.const_data_ptr<float>(), nullptr};
    const uint32_t largest = kernels::largest_magnitude(in, 0, 5003);
    EXPECT_EQ(e4m3::float_of(largest), from.abs().max().item<float>());
    EXPECT_EQ(std::max(kernels::largest_magnitude(in, 0, 1234), kernels::largest_magnitude(in, 1234, 5003)), largest);
    const float scale = e4m3::scale_of(largest);
    at::Tensor out = at::full({5003}, 9, at::kBFloat16);
    kernels::round_to_e4m3(in, scale, static_cast<kernels::Half*>(out.mutable_data_ptr()), 1000, 5003);
    const at::Tensor got = out.to(at::kFloat);
    for (int64_t i = 0; i < 5003; ++i)
      ASSERT_EQ(got[i].item<float>(), i < 1000 ? 9 : e4m3::rounded(from[i].item<float>() / scale) * scale) << from[i].item<float>();
  }
}

FunctionConfig fp8_function() {
  FunctionConfig f = test::small_function();
  f.precision = "bf16", f.target_precision = "fp8";
  return f;
}
Weights random_block(const Layout& layout, FlatBuffers& storage) {
  storage = make_buffers(layout);
  for (at::Tensor& buffer : storage) buffer.normal_(0, 0.1);
  return {storage};
}

// LibTorch's reference product of 8-bit floats is what a GPU's is held to.
TEST(Fp8Target, ProductsAreThoseOf8BitFloats) {
  const FunctionConfig f = fp8_function();
  const Layout layout = Layout::make(f);
  const auto ops = make_cpu_ops(layout, kFp8), plain = make_cpu_ops(layout, "bf16");
  FlatBuffers storage;
  const Weights w = random_block(layout, storage);
  const auto place = [&](const char* name) { return int(layout.find(name) - layout.tensors.data()); };
  const LinearPlaces qkv{place("context_encoder.blocks.0.attn.qkv.weight"), place("context_encoder.blocks.0.attn.qkv.bias")};
  const at::Tensor x = (at::randn({32, f.model.embed_dim}) * 3).to(at::kBFloat16), weight = ops->weight(storage, qkv.weight);
  const auto eight = [](const at::Tensor& t) {
    const float scale = e4m3::scale_of(e4m3::magnitude(t.abs().max().item<float>()));
    return std::pair{(t.to(at::kFloat) / scale).to(at::kFloat8_e4m3fn), at::scalar_tensor(scale)};
  };
  const auto [x8, x_scale] = eight(x);
  const auto [w8, w_scale] = eight(weight);
  const at::Tensor want = at::mm(x8.to(at::kDouble) * x_scale.item<double>(), w8.to(at::kDouble).t() * w_scale.item<double>()) + ops->weight(storage, qkv.bias).to(at::kBFloat16);
  const at::Tensor got = ops->linear(w, x, qkv, LinearFor::kAttention), other = plain->linear(w, x, qkv, LinearFor::kAttention);
  EXPECT_EQ(got.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::allclose(got.to(at::kDouble), want, 1e-2, 1e-3));
  EXPECT_FALSE(at::allclose(other.to(at::kDouble), want, 1e-2, 1e-3));
  const at::Tensor scaled = at::_scaled_mm(x8, w8.t(), x_scale, w_scale, ops->weight(storage, qkv.bias).to(at::kBFloat16), {}, at::kBFloat16);
  EXPECT_TRUE(at::allclose(got.to(at::kFloat), scaled.to(at::kFloat), 1e-2, 1e-2));
}

struct Sides {
  FunctionConfig bf16 = fp8_function(), fp8 = fp8_function();
  State state;
  std::unique_ptr<Engine> bf16_engine, fp8_engine;
  Sides() {
    bf16.target_precision = "same";
    state = State::initial(fp8);
    for (auto* role : {&state.weights, &state.target})
      for (at::Tensor& buffer : *role)
        if (buffer.defined()) buffer.mul_(role == &state.target ? 3 : 4);  // at 0.02 blocks hardly change the stream
    bf16_engine = std::move(*Engine::make(bf16, "cpu")), fp8_engine = std::move(*Engine::make(fp8, "cpu"));
  }
};

TEST(Fp8Target, ConcernsTheTargetAloneAndLittle) {
  Sides s;
  const Tile tile = test::make_tile(s.fp8, 4, 9, 5, 1);
  const TileOutputs plain = s.bf16_engine->outputs(s.state, tile), fp8 = s.fp8_engine->outputs(s.state, tile);
  EXPECT_TRUE(fp8.context_bkd.equal(plain.context_bkd));
  EXPECT_TRUE(fp8.prediction_bkd.equal(plain.prediction_bkd));
  EXPECT_FALSE(fp8.target_bnd.equal(plain.target_bnd));
  const double error = ((fp8.target_normed_bnd - plain.target_normed_bnd).norm() / plain.target_normed_bnd.norm()).item<double>();
  EXPECT_GT(error, 1e-3);
  EXPECT_LT(error, 0.1);  // three bits of mantissa: about 3 % a product
  EXPECT_TRUE(s.fp8_engine->features(s.state, tile.pixels, false).equal(s.bf16_engine->features(s.state, tile.pixels, false)));
}

TEST(Fp8Target, ATileHasTheSameBitsForAnyThreadsAndAfterOthers) {
  Sides s;
  const Tile tile = test::make_tile(s.fp8, 4, 9, 5, 1), other = test::make_tile(s.fp8, 4, 8, 6, 2);
  at::set_num_threads(1);
  const at::Tensor alone = s.fp8_engine->outputs(s.state, tile).target_normed_bnd;
  s.fp8_engine->outputs(s.state, other);
  EXPECT_TRUE(s.fp8_engine->outputs(s.state, tile).target_normed_bnd.equal(alone));
  at::set_num_threads(2);
  const at::Tensor two = s.fp8_engine->outputs(s.state, tile).target_normed_bnd;
  EXPECT_TRUE(s.fp8_engine->outputs(s.state, tile).target_normed_bnd.equal(two));
  at::set_num_threads(1);
}

// The vote that skips a step has to hear of it.
TEST(Fp8Target, WhatIsNotFiniteStaysSo) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Sides s;
    const Tile tile = test::make_tile(s.fp8, 2, 9, 5, 1);
    s.state.view(s.state.target, *s.state.layout.find("context_encoder.blocks.1.mlp.fc1.weight"))[0][0] = bad;
    EXPECT_FALSE(std::isfinite(s.fp8_engine->outputs(s.state, tile).loss));
  }
}

}  // namespace
}  // namespace tessera::model
