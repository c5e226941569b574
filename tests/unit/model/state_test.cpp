#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/model/small_model.h"

namespace tessera::model {
namespace {

TEST(State, BuffersStartOn64BytesWithZeroPadding) {
  const State s = State::initial(test::small_function());
  for (const FlatBuffers* role : {&s.weights, &s.target, &s.exp_avg, &s.exp_avg_sq})
    for (size_t b = 0; b < role->size(); ++b) {
      const at::Tensor& buffer = (*role)[b];
      if (!buffer.defined()) {
        EXPECT_EQ(s.layout.buckets[b].network, Network::kPredictor);
        continue;
      }
      ASSERT_EQ(buffer.numel(), s.layout.buckets[b].size);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.const_data_ptr<float>()) % 64, 0u);
      at::Tensor rest = buffer.clone();
      for (int i = s.layout.buckets[b].first_tensor; i < s.layout.buckets[b].last_tensor; ++i) rest.narrow(0, s.layout.tensors[size_t(i)].offset, s.layout.tensors[size_t(i)].count).zero_();
      EXPECT_EQ(rest.abs().max().item<float>(), 0.0f);
    }
}

TEST(State, InitialWeightsHaveThePublishedStatistics) {
  FunctionConfig f = test::small_function();
  f.model.embed_dim = 192;
  f.seed = 5;
  const State s = State::initial(f);
  for (const TensorPlace& place : s.layout.tensors) {
    const at::Tensor values = s.view(s.weights, place).to(at::kDouble).reshape(-1);
    const double mean = values.mean().item<double>();
    if (place.name.ends_with("bias")) {
      EXPECT_EQ(values.abs().max().item<double>(), 0) << place.name;
    } else if (place.shape.size() == 1) {
      EXPECT_EQ((values - 1).abs().max().item<double>(), 0) << place.name;
    } else if (place.count > 1000) {
      const double n = double(place.count), std = values.std().item<double>();
      EXPECT_NEAR(std, 0.02, 5 * 0.02 / std::sqrt(2 * n)) << place.name;
      EXPECT_NEAR(mean, 0, 5 * 0.02 / std::sqrt(n)) << place.name;
      const double kurtosis = ((values - mean) / std).pow(4).mean().item<double>();
      EXPECT_NEAR(kurtosis, 3, 5 * std::sqrt(24 / n)) << place.name;
    }
    if (place.network == Network::kContextEncoder) {
      EXPECT_TRUE(s.view(s.target, place).equal(s.view(s.weights, place))) << place.name;
    }
  }
  EXPECT_EQ(s.step, 0);
  EXPECT_EQ(s.adam_steps, 0);
}

TEST(State, InitialWeightsDependOnSeedAndNameAlone) {
  FunctionConfig f = test::small_function();
  const State a = State::initial(f), b = State::initial(f);
  EXPECT_EQ(a.digest(), b.digest());
  f.seed = 1;
  EXPECT_NE(State::initial(f).digest(), a.digest());
  f.seed = 0;
  f.model.depth = 3;  // the first blocks are as they were
  const State deeper = State::initial(f);
  const auto& name = "context_encoder.blocks.1.attn.qkv.weight";
  EXPECT_TRUE(deeper.view(deeper.weights, *deeper.layout.find(name)).equal(a.view(a.weights, *a.layout.find(name))));
}

TEST(State, DepthRescaleDividesByTheRootOfTwiceTheBlock) {
  FunctionConfig f = test::small_function();
  const State plain = State::initial(f);
  f.model.depth_rescale = true;
  const State rescaled = State::initial(f);
  const auto ratio = [&](const std::string& name) {
    const TensorPlace& place = *plain.layout.find(name);
    return (rescaled.view(rescaled.weights, place).norm() / plain.view(plain.weights, place).norm()).item<double>();
  };
  EXPECT_NEAR(ratio("context_encoder.blocks.1.attn.proj.weight"), 0.5, 1e-6);
  EXPECT_NEAR(ratio("predictor.predictor_blocks.0.mlp.fc2.weight"), std::sqrt(0.5), 1e-6);
  EXPECT_EQ(ratio("context_encoder.blocks.1.mlp.fc1.weight"), 1.0);
}

TEST(State, DigestSeesEveryRoleAndNoPadding) {
  State s = State::initial(test::small_function());
  const StateDigest before = s.digest();
  for (FlatBuffers* role : {&s.weights, &s.target, &s.exp_avg, &s.exp_avg_sq}) {
    float* value = (*role)[1].mutable_data_ptr<float>() + s.layout.tensors[size_t(s.layout.buckets[1].first_tensor)].offset + 3;
    const float kept = *value;
    *value = std::nextafter(kept, 10.0f);
    EXPECT_NE(s.digest(), before);
    *value = kept;
    EXPECT_EQ(s.digest(), before);
  }
  ++s.adam_steps;
  EXPECT_NE(s.digest(), before);
}

TEST(State, DigestOfSlicesAddsUp) {
  const State s = State::initial(test::small_function());
  const TensorPlace& place = *s.layout.find("context_encoder.blocks.0.attn.qkv.weight");
  const float* values = s.weights[size_t(place.bucket)].const_data_ptr<float>() + place.offset;
  const LaneSeeds seeds = lane_seeds(place.name);
  const StateDigest whole = digest_elements(values, place.count, 0, seeds);
  for (const int64_t cut : {int64_t{1}, int64_t{17}, place.count / 2, place.count - 1}) {
    StateDigest parts = digest_elements(values + cut, place.count - cut, cut, seeds);
    parts += digest_elements(values, cut, 0, seeds);
    EXPECT_EQ(parts, whole) << cut;
  }
}

TEST(State, PositionTableHasThePublishedValues) {
  FunctionConfig f = test::small_function();
  f.model = {"custom", 8, 16, 8, 1, 1, 4.0, false};  // D 8, grid 2
  f.predictor.num_heads = 3;
  const State s = State::empty(f);
  const float wanted[3][8] = {{0, 0, 1, 1, 0, 0, 1, 1}, {.841471f, .01f, .540302f, .99995f, 0, 0, 1, 1}, {0, 0, 1, 1, .841471f, .01f, .540302f, .99995f}};
  for (int row = 0; row < 3; ++row)
    for (int i = 0; i < 8; ++i) EXPECT_NEAR(s.context_position[row][i].item<float>(), wanted[row][i], 1e-6) << row << " " << i;
}

}  // namespace
}  // namespace tessera::model
