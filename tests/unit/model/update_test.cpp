#include <gtest/gtest.h>

#include <ATen/Parallel.h>

#include <cmath>
#include <cstring>

#include "tests/unit/model/small_model.h"
#include "worker/optimizer/update.h"
#include "worker/optimizer/update_kernels.h"

namespace tessera::optimizer {
namespace {

model::FlatBuffers noise(const model::Layout& layout, uint64_t seed) {
  model::FlatBuffers out = model::make_buffers(layout);
  PhiloxStream random(seed, Purpose::kProbe, 2, 0);
  for (const auto& place : layout.tensors) {
    float* values = out[size_t(place.bucket)].mutable_data_ptr<float>() + place.offset;
    for (int64_t i = 0; i < place.count; ++i) values[i] = random.next_float() - 0.5f;
  }
  return out;
}

// AdamW written out in double: what the float loop must stay close to.
TEST(AdamW, AgreesWithTheFormulaInDouble) {
  const FunctionConfig f = test::small_function();
  model::State s = model::State::initial(f);
  const model::State before = model::State::initial(f);
  std::map<std::string, std::array<at::Tensor, 3>> wanted;
  for (const auto& place : s.layout.tensors)
    wanted[place.name] = {before.view(before.weights, place).to(at::kDouble), at::zeros(place.shape, at::kDouble), at::zeros(place.shape, at::kDouble)};
  for (int step = 1; step <= 5; ++step) {
    const auto gradient = noise(s.layout, uint64_t(step));
    const StepRates rates{1e-3 * step, 0.1 * step, 0.996};
    apply_adamw(s, gradient, 0.25f, rates, f.optimizer, false);
    for (const auto& place : s.layout.tensors) {
      auto& [p, m, v] = wanted[place.name];
      const at::Tensor g = s.view(gradient, place).to(at::kDouble) * 0.25;
      m = 0.9 * m + 0.1 * g;
      v = 0.999 * v + 0.001 * g * g;
      if (place.decayed) p = p * (1 - rates.lr * rates.weight_decay);
      p = p - rates.lr / (1 - std::pow(0.9, step)) * m / (v.sqrt() / std::sqrt(1 - std::pow(0.999, step)) + 1e-8);
    }
  }
  for (const auto& place : s.layout.tensors) {
    const auto& [p, m, v] = wanted[place.name];
    EXPECT_LE((s.view(s.weights, place) - p).abs().max().item<double>(), 1e-6) << place.name;
    EXPECT_LE((s.view(s.exp_avg, place) - m).abs().max().item<double>(), 1e-7) << place.name;
    EXPECT_LE((s.view(s.exp_avg_sq, place) - v).abs().max().item<double>(), 1e-9) << place.name;
  }
  EXPECT_EQ(s.step, 5);
  EXPECT_EQ(s.adam_steps, 5);
  EXPECT_TRUE(test::concatenated(s.target).equal(test::concatenated(before.target)));
}

TEST(AdamW, ASkippedStepChangesOnlyTheStep) {
  const FunctionConfig f = test::small_function();
  model::State s = model::State::initial(f);
  auto gradient = noise(s.layout, 1);
  gradient[1].mutable_data_ptr<float>()[5] = std::nanf("");
  const GradientSummary summary = summarize(s, gradient, 1.0f);
  EXPECT_FALSE(summary.finite);
  const StateDigest before = s.digest();
  apply_adamw(s, gradient, 1.0f, {1e-3, 0.04, 0.996}, f.optimizer, true);
  EXPECT_EQ(s.digest(), before);
  EXPECT_EQ(s.step, 1);
  EXPECT_EQ(s.adam_steps, 0);
}

TEST(Summary, IsTheNormOfTheScaledGradient) {
  const model::State s = model::State::initial(test::small_function());
  const auto gradient = noise(s.layout, 3);
  const GradientSummary summary = summarize(s, gradient, 0.5f);
  EXPECT_TRUE(summary.finite);
  EXPECT_NEAR(summary.norm, 0.5 * test::concatenated(gradient).to(at::kDouble).norm().item<double>(), 1e-9);
  auto infinite = noise(s.layout, 3);
  infinite[2].mutable_data_ptr<float>()[0] = INFINITY;
  EXPECT_FALSE(summarize(s, infinite, 0.5f).finite);
}

TEST(Ema, SlicesAreTheWholeWhateverTheCuts) {
  model::State s = model::State::initial(test::small_function());
  const auto weights = noise(s.layout, 4);
  for (size_t i = 0; i < weights.size(); ++i) s.weights[i].copy_(weights[i]);
  const int64_t n = s.layout.target_floats;
  std::vector<float> whole(static_cast<size_t>(n));
  ema_slice(s, 0.996, 0, n, whole.data());
  for (const int64_t parts : {2, 3, 7, 64}) {
    std::vector<float> cut(static_cast<size_t>(n));
    for (int64_t p = 0; p < parts; ++p) ema_slice(s, 0.996, n * p / parts, n * (p + 1) / parts, cut.data() + n * p / parts);
    EXPECT_EQ(cut, whole) << parts;
  }
  const auto& place = *s.layout.find("context_encoder.blocks.0.attn.qkv.weight");
  int64_t start = 0;
  for (int b = 0; b < place.bucket; ++b) start += s.layout.buckets[size_t(b)].size;
  const float t = s.view(s.target, place).reshape(-1)[7].item<float>(), w = s.view(s.weights, place).reshape(-1)[7].item<float>();
  EXPECT_EQ(whole[size_t(start + place.offset + 7)], 0.996f * t + float(1.0 - 0.996) * w);
}

// Element by element, one IEEE operation at a time: what no vector width, piece or thread may differ from by a bit.
__attribute__((optimize("no-tree-vectorize"))) void adamw_scalar(const float* g, float* p, float* m, float* v, int64_t n, const kernels::AdamW& a) {
  for (int64_t i = 0; i < n; ++i) {
    const float grad = g[i] * a.scale;
    m[i] = a.beta1 * m[i] + a.rest1 * grad;
    v[i] = a.beta2 * v[i] + a.rest2 * (grad * grad);
    p[i] = p[i] * a.decay - a.step_size * (m[i] / (std::sqrt(v[i]) / a.root_bc2 + a.eps));
  }
}

TEST(Kernels, AdamWHasTheBitsOfTheScalarLoop) {
  const kernels::AdamW args{0.25f, 1.1e-3f, 0.03f, 0.9999f, 1e-8f, 0.9f, 0.999f, 0.1f, 0.001f};
  for (const int64_t n : {1, 7, 16, 33, 1000}) {
    std::vector<float> g(static_cast<size_t>(n)), p(g), m(g), v(g);
    for (size_t i = 0; i < g.size(); ++i) g[i] = std::sin(float(i) * 1.7f), p[i] = std::cos(float(i)), m[i] = g[i] * 0.3f, v[i] = i % 5 == 0 ? 0.0f : p[i] * p[i];
    std::vector<float> wanted_p = p, wanted_m = m, wanted_v = v;
    adamw_scalar(g.data(), wanted_p.data(), wanted_m.data(), wanted_v.data(), n, args);
    kernels::adamw(g.data(), p.data(), m.data(), v.data(), n, args);
    EXPECT_TRUE(p == wanted_p && m == wanted_m && v == wanted_v) << n;
    std::vector<float> apart(static_cast<size_t>(n)), in_place = wanted_m;
    kernels::ema(wanted_m.data(), p.data(), 0.996, n, apart.data());
    kernels::ema_in_place(in_place.data(), p.data(), 0.996, n);
    EXPECT_EQ(in_place, apart);
  }
}

// Larger than a piece, so that tensors are cut.
model::State wide_state() {
  FunctionConfig f = test::small_function();
  f.model.embed_dim = 96, f.model.num_heads = 3;
  return model::State::initial(f);
}

TEST(Update, FusedWithTheTargetHasTheBitsOfItsPartsForAnyThreads) {
  const FunctionConfig f = test::small_function();
  model::State parts = wide_state();
  for (int step = 1; step <= 3; ++step) {
    const StepRates rates{1e-3 * step, 0.1, 0.99};
    const auto gradient = noise(parts.layout, uint64_t(step));
    for (const int threads : {1, 2}) {
      at::set_num_threads(threads);
      model::State fused = wide_state();
      for (int k = 1; k <= step; ++k) apply_with_target(fused, noise(parts.layout, uint64_t(k)), 0.25f, {1e-3 * k, 0.1, 0.99}, f.optimizer);
      if (threads == 1) {
        apply_adamw(parts, gradient, 0.25f, rates, f.optimizer, false);
        std::vector<float> target(size_t(parts.layout.target_floats));
        ema_slice(parts, rates.ema, 0, parts.layout.target_floats, target.data());
        const float* from = target.data();
        for (auto& bucket : parts.target)
          if (bucket.defined()) std::copy(from, from + bucket.numel(), bucket.mutable_data_ptr<float>()), from += bucket.numel();
      }
      EXPECT_EQ(fused.digest(), parts.digest()) << step << " with " << threads;
      EXPECT_TRUE(test::concatenated(fused.target).equal(test::concatenated(parts.target)));
      EXPECT_EQ(fused.step, step);
      EXPECT_EQ(fused.adam_steps, step);
    }
  }
  at::set_num_threads(1);
}

TEST(Update, TheGradientIsExaminedInOnePass) {
  const model::State s = wide_state();
  auto gradient = noise(s.layout, 3);
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    const GradientFacts facts = examine(s, gradient, 0.5f);
    EXPECT_EQ(facts.digest, model::gradient_digest(s.layout, gradient));
    EXPECT_NEAR(facts.summary.norm, 0.5 * test::concatenated(gradient).to(at::kDouble).norm().item<double>(), 1e-9);
    EXPECT_TRUE(facts.summary.finite);
  }
  at::set_num_threads(1);
  const StateDigest before = examine(s, gradient, 0.5f).digest;
  auto& place = s.layout.tensors.back();
  float& value = gradient[size_t(place.bucket)].mutable_data_ptr<float>()[place.offset + place.count - 1];
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits ^= 1;
  std::memcpy(&value, &bits, 4);
  EXPECT_FALSE(examine(s, gradient, 0.5f).digest == before) << "one bit of the last element";
}

TEST(Kernels, SumOfSquaresAndAddition) {
  for (const int64_t n : {0, 1, 7, 8, 9, 1000}) {
    std::vector<float> a(static_cast<size_t>(n)), b(static_cast<size_t>(n)), out(static_cast<size_t>(n));
    double wanted = 0;
    for (int64_t i = 0; i < n; ++i) a[size_t(i)] = float(i) * 0.5f, b[size_t(i)] = 1.0f - float(i), wanted += 0.25 * double(i) * double(i);
    EXPECT_NEAR(kernels::sum_of_squares(a.data(), n), wanted, 1e-9 * (1 + wanted));
    kernels::add(a.data(), b.data(), out.data(), n);
    kernels::accumulate(a.data(), b.data(), n);
    EXPECT_EQ(a, out);
  }
}

}  // namespace
}  // namespace tessera::optimizer
