// A golden training run (train_*): its batches evaluated and applied one by one on a state, compared step by step.
#pragma once

#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <cmath>

#include "tests/goldens/model/goldens.h"
#include "worker/optimizer/update.h"

namespace tessera::goldens {

// Schedule settings of a `train` object.
inline RunLength apply_train(const nlohmann::json& train, FunctionConfig& f) {
  f.optimizer.lr = train.at("lr"), f.optimizer.start_lr = train.at("start_lr"), f.optimizer.final_lr = train.at("final_lr");
  f.optimizer.weight_decay = train.at("wd"), f.optimizer.final_weight_decay = train.at("final_wd");
  f.optimizer.ema = {train.at("ema")[0], train.at("ema")[1]};
  f.optimizer.ipe_scale = train.at("ipe_scale");
  f.optimizer.warmup_epochs = train.at("warmup");
  f.epochs = train.at("epochs");
  f.batch = {1, 1, 1};
  auto length = run_length(f, train.at("ipe").get<int64_t>());
  if (!length) throw std::runtime_error(length.error().message);
  return *length;
}

struct Trajectory {
  nlohmann::json meta;
  Tensors batches, final_tensors;
  FunctionConfig function;
  RunLength length;
  model::State state;
  std::unique_ptr<model::Engine> engine;
  model::FlatBuffers gradient;

  explicit Trajectory(const std::filesystem::path& path)
      : meta(load_json(path / "steps.json")), batches(load(path / "batches.safetensors")), final_tensors(load(path / "final.safetensors")) {
    function = function_of(meta.at("config"));
    function.optimizer.betas = {meta.at("betas")[0], meta.at("betas")[1]};
    function.optimizer.eps = meta.at("eps");
    function.data.mean = meta.at("mean").get<Triple>(), function.data.std = meta.at("std").get<Triple>();
    length = apply_train(meta.at("train"), function);
    state = model::State::empty(function);
    engine = std::move(*model::Engine::make(function, "cpu"));
    gradient = model::make_buffers(state.layout);
  }

  void run_to_end() {
    const optimizer::Schedule schedule(function, length);
    const int64_t steps = batches.at("images_u8").size(0);
    for (int64_t k = state.step; k < steps; ++k) {
      const std::string step = std::to_string(k) + ".";
      const model::Tile tile = tile_of(batches.at("images_u8").select(0, k), batches, "masks_enc." + step, "masks_pred." + step);
      const double loss = engine->gradient(state, tile, gradient, false).loss;
      const auto& wanted = meta.at("steps")[size_t(k)];
      EXPECT_TRUE(within("training: loss of every step", std::abs(loss - wanted.at("loss").get<double>()), 1e-6)) << "step " << k;
      const optimizer::GradientSummary summary = optimizer::summarize(state, gradient, 1.0f);
      const double norm = wanted.at("grad_norm").get<double>();
      EXPECT_TRUE(within("training: gradient norm of every step (relative)", std::abs(summary.norm - norm) / norm, 2e-5)) << "step " << k;
      const optimizer::StepRates rates = schedule.at(k);
      EXPECT_NEAR(rates.lr, wanted.at("lr").get<double>(), 1e-12 * rates.lr);
      optimizer::apply_adamw(state, gradient, 1.0f, rates, function.optimizer, !summary.finite);
      apply_ema(rates.ema);
    }
    EXPECT_EQ(state.step, steps);
  }

  void apply_ema(double momentum) {
    std::vector<float> next(size_t(state.layout.target_floats));
    optimizer::ema_slice(state, momentum, 0, state.layout.target_floats, next.data());
    const float* from = next.data();
    for (size_t i = 0; i < state.target.size(); ++i) {
      if (!state.target[i].defined()) continue;
      std::memcpy(state.target[i].mutable_data_ptr<float>(), from, size_t(state.target[i].numel()) * 4);
      from += state.target[i].numel();
    }
    optimizer::ema_position(state, momentum);
  }

  void expect_final() const {
    for (const auto& place : state.layout.tensors) {
      const std::string name = golden_name(place.name);
      EXPECT_TRUE(within("training: final weights", max_abs(state.view(state.weights, place), final_tensors.at(name)), 3e-6)) << name;
      for (const auto& [prefix, role] : {std::pair{"exp_avg.", &state.exp_avg}, std::pair{"exp_avg_sq.", &state.exp_avg_sq}}) {
        const at::Tensor ours = without_key_bias(name, state.view(*role, place)), theirs = without_key_bias(name, final_tensors.at(prefix + name));
        EXPECT_TRUE(within("training: final moments (relative)", relative(ours, theirs), 1e-5)) << prefix << name;
      }
      if (place.network != model::Network::kContextEncoder) continue;
      EXPECT_TRUE(within("training: final target network", max_abs(state.view(state.target, place), final_tensors.at(place.target_name())), 1e-6)) << place.target_name();
    }
    EXPECT_LE(max_abs(state.target_position, final_tensors.at("target_encoder.pos_embed")), 1e-6);
    EXPECT_LE(std::abs(max_abs(state.target_position, state.context_position) - meta.at("target_pos_embed_minus_encoder_pos_embed_max_abs").get<double>()), 1e-7);
  }
};

}  // namespace tessera::goldens
