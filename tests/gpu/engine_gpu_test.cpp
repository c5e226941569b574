// A tile's gradient on a GPU: near the CPU's, the same bits every time.
#include <ATen/Parallel.h>

#include "tests/gpu/gpu.h"
#include "worker/optimizer/update.h"

namespace tessera::model {
namespace {

using test::kDevice;

struct Side {
  State state;
  std::unique_ptr<Engine> engine;
  FlatBuffers gradient;
};
Side side(const FunctionConfig& f, const std::string& device) {
  Side s;
  State host = State::initial(f);
  for (auto& buffer : host.target)  // target and context must differ
    if (buffer.defined()) buffer.mul_(0.75);
  s.state = to_device(std::move(host), f.precision, device);
  s.engine = std::move(*Engine::make(f, device));
  s.gradient = make_buffers(s.state.layout, device);
  return s;
}
double relative_error(const at::Tensor& got, const at::Tensor& want) { return ((got.cpu() - want).norm() / want.norm()).item<double>(); }

using EngineGpu = test::Gpu;

// The CPU engine's fp32 gradients are compared with autograd's in the goldens.
TEST_F(EngineGpu, GradientIsTheCpus) {
  for (const auto& [precision, tolerance] : {std::pair<const char*, double>{"fp32", 1e-4}, {"bf16", 3e-2}, {"published", 3e-2}}) {
    SCOPED_TRACE(precision);
    const FunctionConfig f = test::gpu_function(precision);
    FunctionConfig exact = f;
    exact.precision = "fp32";
    Side gpu = side(f, kDevice), cpu = side(exact, "cpu");
    for (uint64_t seed = 0; seed < 3; ++seed) {
      const Tile tile = test::make_tile(f, 6, 17 + int64_t(seed), 9, seed);
      const double loss = gpu.engine->gradient(gpu.state, tile, gpu.gradient, false).loss, want = cpu.engine->gradient(cpu.state, tile, cpu.gradient, false).loss;
      EXPECT_NEAR(loss, want, tolerance * want);
      EXPECT_LE(relative_error(test::concatenated(gpu.gradient), test::concatenated(cpu.gradient)), tolerance);
      for (const auto& place : cpu.state.layout.tensors) {
        const at::Tensor have = gpu.state.view(gpu.gradient, place), reference = cpu.state.view(cpu.gradient, place);
        EXPECT_LE(relative_error(have, reference), 5 * tolerance) << place.name;
      }
    }
  }
}

// The CPU's pass has the same numbers as operands; what differs is what bf16 differs by.
TEST_F(EngineGpu, Fp8TargetsAreTheCpus) {
  FunctionConfig f = test::gpu_function("bf16");
  f.target_precision = "fp8";
  Side gpu = side(f, kDevice), cpu = side(f, "cpu");
  const Tile tile = test::make_tile(f, 6, 17, 9, 1);
  const at::Tensor got = gpu.engine->outputs(gpu.state, tile).target_normed_bnd;
  EXPECT_LE(relative_error(got, cpu.engine->outputs(cpu.state, tile).target_normed_bnd), 3e-2);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(gpu.engine->outputs(gpu.state, tile).target_normed_bnd.equal(got)) << i;
}

TEST_F(EngineGpu, FeaturesAreTheCpus) {
  const FunctionConfig f = test::gpu_function("fp32");
  Side gpu = side(f, kDevice), cpu = side(f, "cpu");
  const Tile tile = test::make_tile(f, 4, 17, 9, 1);
  EXPECT_LE(relative_error(gpu.engine->features(gpu.state, tile.pixels, false), cpu.engine->features(cpu.state, tile.pixels, false)), 1e-4);
}

TEST_F(EngineGpu, AHundredEvaluationsAndTwoEnginesHaveTheSameBits) {
  for (const char* precision : {"fp32", "published"}) {
    SCOPED_TRACE(precision);
    const FunctionConfig f = test::gpu_function(precision);
    Side one = side(f, kDevice), two = side(f, kDevice);
    const Tile tile = test::make_tile(f, 16, 21, 10, 5), other = test::make_tile(f, 16, 18, 11, 6);
    one.engine->gradient(one.state, tile, one.gradient, false);
    const StateDigest first = gradient_digest(one.state.layout, one.gradient);
    for (int i = 0; i < 100; ++i) {
      if (i % 10 == 0) one.engine->gradient(one.state, other, one.gradient, false);
      one.engine->gradient(one.state, tile, one.gradient, false);
      ASSERT_EQ(gradient_digest(one.state.layout, one.gradient), first) << "evaluation " << i;
    }
    two.engine->gradient(two.state, tile, two.gradient, false);
    EXPECT_EQ(gradient_digest(two.state.layout, two.gradient), first);
  }
}

// ViT-B/16's own widths and lengths, so that the kernels that training uses are the ones that repeat.
TEST_F(EngineGpu, AFullWidthTileHasTheSameBitsTwice) {
  FunctionConfig f = test::gpu_function("published");
  f.model = {"custom", 16, 224, 768, 2, 12, 4.0, false};
  f.predictor = {384, 2, 12, 4.0};
  Side gpu = side(f, kDevice);
  const Tile tile = test::make_tile(f, 32, 49, 34, 2);
  StateDigest first;
  for (int i = 0; i < 20; ++i) {
    gpu.engine->gradient(gpu.state, tile, gpu.gradient, false);
    const StateDigest now = gradient_digest(gpu.state.layout, gpu.gradient);
    if (i == 0) first = now;
    ASSERT_EQ(now, first) << "evaluation " << i;
  }
}

std::vector<double> losses(const FunctionConfig& f, const std::string& device, int steps, StateDigest* digest) {
  Side s = side(f, device);
  std::vector<double> out;
  for (int k = 0; k < steps; ++k) {
    const Tile tile = test::make_tile(f, 8, 20, 9, uint64_t(k % 7));
    out.push_back(s.engine->gradient(s.state, tile, s.gradient, false).loss);
    const optimizer::StepRates rates{1e-3, 0.04, 0.996};
    if (on_device(s.state.weights)) {
      optimizer::apply_with_target(s.state, s.gradient, 1.0f, rates, f.optimizer);
    } else {
      optimizer::apply_adamw(s.state, s.gradient, 1.0f, rates, f.optimizer, false);
      std::vector<float> target(size_t(s.state.layout.target_floats));
      optimizer::ema_slice(s.state, rates.ema, 0, s.state.layout.target_floats, target.data());
      const float* from = target.data();
      for (auto& buffer : s.state.target)
        if (buffer.defined()) std::memcpy(buffer.mutable_data_ptr(), from, buffer.nbytes()), from += buffer.numel();
    }
  }
  *digest = s.state.digest();
  return out;
}

TEST_F(EngineGpu, AShortRunLearnsAsOnTheCpuAndTwiceTheSame) {
  constexpr int kSteps = 100;
  StateDigest cpu_digest, digest, again;
  const auto cpu = losses(test::gpu_function("fp32"), "cpu", kSteps, &cpu_digest);
  for (const char* precision : {"fp32", "published"}) {
    SCOPED_TRACE(precision);
    const auto gpu = losses(test::gpu_function(precision), kDevice, kSteps, &digest);
    EXPECT_EQ(losses(test::gpu_function(precision), kDevice, kSteps, &again), gpu);
    EXPECT_EQ(digest, again);
    EXPECT_LT(gpu.back(), 0.8 * gpu.front());
    double worst = 0;
    for (size_t k = 0; k < gpu.size(); ++k) worst = std::max(worst, std::fabs(gpu[k] - cpu[k]) / cpu[k]);
    RecordProperty(std::string("worst_loss_difference_") + precision, std::to_string(worst));
    EXPECT_LT(worst, precision == std::string("fp32") ? 0.02 : 0.1);
  }
}

}  // namespace
}  // namespace tessera::model
