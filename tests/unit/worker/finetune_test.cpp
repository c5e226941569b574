#include "worker/evaluate/finetune.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "worker/evaluate/logistic.h"

namespace tessera::evaluate {
namespace {

LoadedModel small_model() {
  FunctionConfig function;
  function.model = {"custom", 8, 32, 24, 2, 3, 4.0};
  function.predictor = {12, 1, 3, 4.0};
  function.precision = "fp32";
  return {"", "", function, model::State::initial(function)};
}

// Class 0: bright on the left; class 1: bright at the top.
struct Halves {
  at::Tensor pixels;
  std::vector<int64_t> labels;
};
Halves halves(int64_t n) {
  Halves out{at::arange(n * 32 * 32 * 3).mul(7919).remainder(100).to(at::kByte).view({n, 32, 32, 3}), {}};
  for (int64_t i = 0; i < n; ++i) out.labels.push_back(i % 2), out.pixels[i].narrow(i % 2 == 0 ? 1 : 0, 0, 16).add_(100);
  return out;
}

TEST(TrainableEncoder, gives_what_the_engine_gives) {
  at::set_num_threads(1);
  const LoadedModel model = small_model();
  const at::Tensor pixels = halves(5).pixels;
  const auto engine = model::Engine::make(model.function, "cpu");
  ASSERT_TRUE(engine.has_value());
  for (const EncoderKind kind : {EncoderKind::kTarget, EncoderKind::kContext}) {
    AdamW optimizer(0);
    const TrainableEncoder ours(model, kind, 2, optimizer, 0.75);
    EXPECT_TRUE(at::allclose(ours.features(pixels), (*engine)->features(model.state, pixels, kind == EncoderKind::kContext).mean(1), 1e-5, 1e-5));
  }
}

TEST(Finetune, learns_and_leaves_the_model_alone) {
  at::set_num_threads(1);
  const LoadedModel model = small_model();
  const auto before = model.state.digest();
  const Halves train = halves(64), test = halves(20);
  FinetuneOptions options;
  options.epochs = 6, options.batch = 16;
  const auto predicted = finetuned(model, EncoderKind::kTarget, train.pixels, train.labels, 2, test.pixels, options, 0);
  EXPECT_GT(accuracy(predicted, test.labels), 0.9);
  EXPECT_TRUE(model.state.digest() == before);
  EXPECT_EQ(predicted, finetuned(model, EncoderKind::kTarget, train.pixels, train.labels, 2, test.pixels, options, 0));
}

TEST(AdamW, moves_a_leaf_by_its_own_rate_and_decays_matrices_alone) {
  AdamW optimizer(0.1);
  const at::Tensor matrix = optimizer.add(at::ones({1, 1}), 0.5), bias = optimizer.add(at::ones({1})), still = optimizer.add(at::ones({1}));
  (matrix.sum() * 3 + bias.sum() * 3).backward();
  optimizer.update(0.01);  // the first step's length is the rate, whatever the gradient
  EXPECT_NEAR(matrix.item<float>(), 1 - 0.005 * 0.1 - 0.005, 1e-6);
  EXPECT_NEAR(bias.item<float>(), 1 - 0.01, 1e-6);
  EXPECT_EQ(still.item<float>(), 1);
}

}  // namespace
}  // namespace tessera::evaluate
