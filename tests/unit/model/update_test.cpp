#include <gtest/gtest.h>

#include <cmath>

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
