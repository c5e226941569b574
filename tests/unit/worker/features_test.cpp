#include "worker/evaluate/features.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "worker/evaluate/patch_pictures.h"
#include "worker/model/engine.h"

namespace tessera::evaluate {
namespace {

LoadedModel small_model(int64_t depth) {
  FunctionConfig function;
  function.model = {"custom", 8, 32, 24, depth, 3, 4.0};
  function.predictor = {12, 1, 3, 4.0};
  return {"", "", function, model::State::initial(function)};
}
at::Tensor some_pixels(int64_t n) { return at::arange(n * 32 * 32 * 3).mul(7919).remainder(251).to(at::kByte).view({n, 32, 32, 3}); }

TEST(FrozenEncoder, gives_what_the_engine_gives) {
  at::set_num_threads(1);
  const LoadedModel model = small_model(3);
  const at::Tensor pixels = some_pixels(70);  // more than one batch
  auto engine = model::Engine::make(model.function, "cpu");
  ASSERT_TRUE(engine.has_value());
  for (const EncoderKind kind : {EncoderKind::kTarget, EncoderKind::kContext}) {
    const at::Tensor theirs = (*engine)->features(model.state, pixels, kind == EncoderKind::kContext);
    const FrozenEncoder ours(model, kind);
    EXPECT_TRUE(at::allclose(ours.features(pixels, Pooling::kPatches), theirs, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(ours.features(pixels, Pooling::kMean), theirs.mean(1), 1e-5, 1e-5));
  }
}

TEST(FrozenEncoder, last4_ends_with_the_last_block_and_takes_what_blocks_there_are) {
  for (const int64_t depth : {1, 2, 6}) {
    const LoadedModel model = small_model(depth);
    const FrozenEncoder encoder(model, EncoderKind::kTarget);
    const at::Tensor pixels = some_pixels(3), wide = encoder.features(pixels, Pooling::kLast4);
    ASSERT_EQ(wide.size(1), std::min<int64_t>(4, depth) * 24);
    EXPECT_EQ(encoder.channels(Pooling::kLast4), wide.size(1));
    EXPECT_TRUE(at::equal(wide.narrow(1, wide.size(1) - 24, 24), encoder.features(pixels, Pooling::kMean)));
  }
}

TEST(FrozenEncoder, attention_of_each_head_sums_to_one) {
  const LoadedModel model = small_model(2);
  const at::Tensor attention = FrozenEncoder(model, EncoderKind::kTarget).attention(some_pixels(9));
  EXPECT_EQ(attention.sizes(), (at::IntArrayRef{9, 3, 16}));
  EXPECT_TRUE(at::allclose(attention.sum(2), at::ones({9, 3}), 1e-5, 1e-5));
}

TEST(PcaColors, the_first_colour_follows_the_direction_that_varies_most) {
  at::Tensor patches = at::zeros({400, 5});
  const at::Tensor wide = at::linspace(-1, 1, 400);
  patches.select(1, 3).copy_(wide * 10);
  patches.select(1, 1).copy_((wide * 40).sin());
  const at::Tensor colors = pca_colors(patches);
  ASSERT_EQ(colors.sizes(), (at::IntArrayRef{400, 3}));
  EXPECT_GE(colors.min().item<float>(), 0.0f);
  EXPECT_LE(colors.max().item<float>(), 1.0f);
  EXPECT_TRUE((colors.select(1, 0).diff() >= -1e-4).all().item<bool>()) << "component 0 does not rise along the axis";
}

TEST(CheckFinite, says_whose_features) {
  EXPECT_TRUE(check_finite(at::ones({2}), "x").has_value());
  const auto bad = check_finite(at::full({2}, std::numeric_limits<float>::quiet_NaN()), "step-7");
  ASSERT_FALSE(bad.has_value());
  EXPECT_NE(bad.error().message.find("step-7"), std::string::npos);
}

}  // namespace
}  // namespace tessera::evaluate
