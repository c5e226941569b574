// A state on a GPU: digests, update and checkpoints have the CPU's bits.
#include <cstring>
#include <map>

#include "tests/gpu/gpu.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/optimizer/update.h"

namespace tessera::model {
namespace {

using test::kDevice;

State drawn_state(const FunctionConfig& f) {
  State s = State::initial(f);
  at::manual_seed(5);
  for (const auto& place : s.layout.tensors) {
    s.view(s.exp_avg, place).normal_(0, 1e-3);
    s.view(s.exp_avg_sq, place).normal_(0, 1e-3).square_();
    if (place.network == Network::kContextEncoder) s.view(s.target, place).normal_(0, 0.05);
  }
  s.adam_steps = 17, s.step = 20;
  return s;
}
FlatBuffers drawn_gradient(const State& s) {
  FlatBuffers g = make_buffers(s.layout);
  at::manual_seed(6);
  for (const auto& place : s.layout.tensors) s.view(g, place).normal_(0, 1e-2);
  return g;
}
FlatBuffers moved(const FlatBuffers& role) {
  FlatBuffers out;
  for (const auto& buffer : role) out.push_back(buffer.to(c10::Device(kDevice)));
  return out;
}

using StateGpu = test::Gpu;

TEST_F(StateGpu, DigestsAndSummariesAreTheCpus) {
  const FunctionConfig f = test::gpu_function("published");
  const State host = drawn_state(f), gpu = to_device(host, f.precision, kDevice);
  EXPECT_EQ(gpu.digest(), host.digest());
  EXPECT_EQ(gpu.target_digest(), host.target_digest());
  FlatBuffers gradient = drawn_gradient(host), on_gpu = moved(gradient);
  EXPECT_EQ(gradient_digest(gpu.layout, on_gpu), gradient_digest(host.layout, gradient));
  const auto want = optimizer::summarize(host, gradient, 0.5f), have = optimizer::summarize(gpu, on_gpu, 0.5f);
  EXPECT_TRUE(have.finite);
  EXPECT_NEAR(have.norm, want.norm, 1e-9 * want.norm);
  on_gpu[1].narrow(0, 3, 1).fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(optimizer::summarize(gpu, on_gpu, 0.5f).finite);
}

TEST_F(StateGpu, TheUpdateHasTheCpusBits) {
  for (const char* precision : {"fp32", "published"}) {
    const FunctionConfig f = test::gpu_function(precision);
    State host = drawn_state(f), gpu = to_device(host, f.precision, kDevice), apart = to_device(host, f.precision, kDevice);
    const FlatBuffers gradient = drawn_gradient(host), on_gpu = moved(gradient);
    const optimizer::StepRates rates{1e-3, 0.05, 0.9962};
    optimizer::apply_with_target(gpu, on_gpu, 0.25f, rates, f.optimizer);
    optimizer::apply_adamw(host, gradient, 0.25f, rates, f.optimizer, false);
    std::vector<float> target(size_t(host.layout.target_floats));
    optimizer::ema_slice(host, rates.ema, 0, host.layout.target_floats, target.data());
    const float* from = target.data();
    for (auto& buffer : host.target)
      if (buffer.defined()) std::memcpy(buffer.mutable_data_ptr(), from, buffer.nbytes()), from += buffer.numel();
    EXPECT_EQ(gpu.digest(), host.digest());
    optimizer::apply_adamw(apart, on_gpu, 0.25f, rates, f.optimizer, false);
    optimizer::ema_on_device(apart, rates.ema);
    EXPECT_EQ(apart.digest(), host.digest());
    optimizer::ema_position(gpu, rates.ema), optimizer::ema_position(host, rates.ema);
    EXPECT_TRUE(gpu.target_position.cpu().equal(host.target_position));
    for (size_t i = 0; i < gpu.weights_half.size(); ++i) {
      EXPECT_TRUE(gpu.weights_half[i].equal(gpu.weights[i].to(at::kBFloat16)));
      if (gpu.target[i].defined()) {
        EXPECT_TRUE(gpu.target_half[i].equal(gpu.target[i].to(at::kBFloat16)));
      }
    }
  }
}

// What a checkpoint of a GPU's state says is the state, and a run goes on from it with the bits it would have had.
TEST_F(StateGpu, ACheckpointResumesWithTheSameBits) {
  const FunctionConfig f = test::gpu_function("published");
  State state = to_device(drawn_state(f), f.precision, kDevice);
  auto engine = std::move(*Engine::make(f, kDevice));
  FlatBuffers gradient = make_buffers(state.layout, kDevice);
  const auto step = [&](State& s, uint64_t seed) {
    engine->gradient(s, test::make_tile(f, 8, 20, 9, seed), gradient, false);
    optimizer::apply_with_target(s, gradient, 1.0f, {1e-3, 0.04, 0.996}, f.optimizer);
  };
  step(state, 1);
  backend()->wait();
  checkpoint::Scalars scalars;
  scalars.step = state.step, scalars.adam_steps = state.adam_steps, scalars.state_digest = state.digest();
  const checkpoint::Snapshot snapshot = checkpoint::take_snapshot(state, scalars, {1, 1}, 0, 1);
  State host = State::empty(f);
  std::map<std::string, const TensorView*> by_name;
  for (const auto& view : snapshot.tensors) by_name[view.name] = &view;
  for (const auto& want : checkpoint::state_tensors(host)) {
    ASSERT_TRUE(by_name.contains(want.name)) << want.name;
    std::memcpy(const_cast<void*>(want.data), by_name[want.name]->data, size_t(want.size_bytes));
  }
  host.step = state.step, host.adam_steps = state.adam_steps;
  EXPECT_EQ(host.digest(), scalars.state_digest);
  State resumed = to_device(std::move(host), f.precision, kDevice);
  step(state, 2), step(resumed, 2);
  EXPECT_EQ(resumed.digest(), state.digest());
}

TEST_F(StateGpu, AStateGoesToTheHostAndBack) {
  const FunctionConfig f = test::gpu_function("published");
  const State host = drawn_state(f), gpu = to_device(host, f.precision, kDevice), back = to_host(gpu);
  EXPECT_EQ(back.digest(), host.digest());
  EXPECT_TRUE(back.weights_half.empty());
  EXPECT_TRUE(back.target_position.equal(host.target_position));
}

TEST_F(StateGpu, TooLittleMemoryIsSaidBeforeTheFirstStep) {
  FunctionConfig f = test::gpu_function("published");
  f.model = {"vit_giant", 14, 448, 1408, 40, 16, 4.3637, false};
  f.batch.tile_size = 4096;
  const Status refused = prepare_device(kDevice, &f);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("function.batch.tile_size"), std::string::npos) << refused.error().message;
}

}  // namespace
}  // namespace tessera::model
