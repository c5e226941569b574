// Outputs, loss and gradients against the published implementation (goldens model_*). Tolerances: the goldens' README.
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <cstdlib>

#include "tests/goldens/model/goldens.h"
#include "tests/goldens/model/model_case.h"

namespace tessera {
namespace {

using goldens::relative;
using goldens::within;

using goldens::by_golden_name;
using goldens::Case;
using goldens::load_case;

std::unique_ptr<model::Engine> engine_of(const Case& c) { return std::move(*model::Engine::make(c.function, "cpu")); }

TEST(Model, OutputsAndLoss) {
  TESSERA_GOLDEN_CASES(cases, "", "model_*");
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const Case c = load_case(path);
    const model::TileOutputs out = engine_of(c)->outputs(c.state, c.tile);
    for (const auto& [name, ours] : by_golden_name(out)) {
      ASSERT_TRUE(c.io.contains(name)) << name;
      EXPECT_EQ(ours.sizes(), c.io.at(name).sizes()) << name;
      EXPECT_TRUE(within("forward: " + name + " (relative)", relative(ours, c.io.at(name)), 5e-6));
    }
    EXPECT_TRUE(within("forward: loss", std::abs(out.loss - c.meta.at("loss").get<double>()), 1e-6));
  }
}

TEST(Model, PositionTables) {
  TESSERA_GOLDEN_CASES(cases, "", "model_*");
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const Case c = load_case(path);
    if (!c.io.contains("pos_embed")) continue;  // a case that brings its own tables
    EXPECT_TRUE(within("position tables", goldens::max_abs(c.state.context_position, c.io.at("pos_embed")), 1.2e-7));
    EXPECT_TRUE(within("position tables", goldens::max_abs(c.state.predictor_position, c.io.at("predictor_pos_embed")), 1.2e-7));
  }
}

TEST(Model, FormulaWeights) {
  TESSERA_GOLDEN_CASES(cases, "", "model_*");
  for (const auto& path : cases) {
    const auto meta = goldens::load_json(path / "meta.json");
    if (!meta.contains("formula_check")) continue;
    for (const auto& [name, values] : meta.at("formula_check").items())
      for (size_t i = 0; i < values.size(); ++i)
        EXPECT_EQ(goldens::formula_value(name, name.ends_with(".bias") || name.find("norm") != std::string::npos ? 1 : 2, meta.at("seed").get<uint64_t>(), i),
                  values[i].get<float>())
            << path << " " << name << " " << i;
  }
}

// One gradient against a stored one: all elements, or the flat elements (j n) div c of a sample.
void expect_gradient(const std::string& name, const at::Tensor& ours, const at::Tensor& stored, bool sampled) {
  at::Tensor mine = ours.reshape(-1), theirs = stored.reshape(-1);
  std::vector<int64_t> places;
  const int64_t n = mine.numel(), d = n / 3, count = theirs.numel();
  const bool bias = name.ends_with("attn.qkv.bias");
  for (int64_t j = 0; j < count; ++j) {
    const int64_t place = sampled ? j * n / count : j;
    if (!(bias && place >= d && place < 2 * d)) places.push_back(j);
  }
  if (sampled) {
    std::vector<int64_t> flat;
    for (int64_t j = 0; j < count; ++j) flat.push_back(j * n / count);
    mine = mine.index_select(0, at::tensor(flat));
  }
  ASSERT_EQ(mine.numel(), theirs.numel()) << name;
  const at::Tensor kept = at::tensor(places);
  const double scale = std::max(goldens::without_key_bias(name, ours.reshape(-1)).abs().max().item<double>(), theirs.abs().max().item<double>());
  EXPECT_TRUE(within("gradients (relative to the tensor's largest)", goldens::max_abs(mine.index_select(0, kept), theirs.index_select(0, kept)) / scale, 1e-5)) << name;
}

TEST(Model, Gradients) {
  TESSERA_GOLDEN_CASES(cases, "", "model_*");
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const Case c = load_case(path);
    model::FlatBuffers gradient = model::make_buffers(c.state.layout);
    for (const auto& place : c.state.layout.tensors) c.state.view(gradient, place).fill_(7.0f);  // must be overwritten
    const model::TileResult result = engine_of(c)->gradient(c.state, c.tile, gradient, false);
    EXPECT_NEAR(result.loss, c.meta.at("loss").get<double>(), 1e-6);
    const bool sampled = !std::filesystem::exists(path / "grads.safetensors");
    const auto stored = goldens::load(path / (sampled ? "grad_samples.safetensors" : "grads.safetensors"));
    size_t compared = 0;
    for (const auto& place : c.state.layout.tensors) {
      const std::string name = goldens::golden_name(place.name);
      ASSERT_TRUE(stored.contains(name)) << name;
      const at::Tensor ours = c.state.view(gradient, place);
      expect_gradient(name, ours, stored.at(name), sampled);
      ++compared;
      if (c.meta.contains("gradients") && c.meta.at("gradients").contains(name)) {
        const double norm = c.meta.at("gradients").at(name).at("l2").get<double>();
        EXPECT_NEAR(ours.to(at::kDouble).norm().item<double>(), norm, 1e-5 * norm) << name;
      }
    }
    EXPECT_EQ(compared, stored.size());
  }
}

// DESIGN: the step's gradient is the mean over tiles of each tile's own mean. For the published code a rank is a tile:
// DistributedDataParallel averages the ranks' gradients, each of its rank's mean. So two ranks with half of a golden batch
// each (equal mask lengths) must give the gradient and the loss of one rank with all of it, which the golden stores.
TEST(Model, TwoRanksAverageToTheGradientOfOne) {
  TESSERA_GOLDEN_CASES(cases, "", "model_*");
  int compared = 0;
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const Case c = load_case(path);
    const int64_t b = c.tile.pixels.size(0);
    if (b % 2 != 0 || !std::filesystem::exists(path / "grads.safetensors")) continue;
    const auto stored = goldens::load(path / "grads.safetensors");
    const auto engine = engine_of(c);
    model::FlatBuffers ranks[2] = {model::make_buffers(c.state.layout), model::make_buffers(c.state.layout)};
    double loss = 0;
    for (int64_t r = 0; r < 2; ++r) {
      model::Tile half;
      half.pixels = c.tile.pixels.narrow(0, r * b / 2, b / 2).contiguous();
      for (const at::Tensor& mask : c.tile.contexts) half.contexts.push_back(mask.narrow(0, r * b / 2, b / 2).contiguous());
      for (const at::Tensor& mask : c.tile.targets) half.targets.push_back(mask.narrow(0, r * b / 2, b / 2).contiguous());
      loss += engine->gradient(c.state, half, ranks[r], false).loss / 2;
    }
    EXPECT_TRUE(within("two ranks: loss", std::abs(loss - c.meta.at("loss").get<double>()), 1e-6));
    for (const auto& place : c.state.layout.tensors) {
      const std::string name = goldens::golden_name(place.name);
      const at::Tensor mean = (c.state.view(ranks[0], place) + c.state.view(ranks[1], place)) * 0.5;
      const at::Tensor ours = goldens::without_key_bias(name, mean.reshape(-1)), theirs = goldens::without_key_bias(name, stored.at(name).reshape(-1));
      EXPECT_TRUE(within("two ranks: gradients (relative to the tensor's largest)", goldens::relative(ours, theirs), 1e-5)) << name;
    }
    ++compared;
  }
  if (compared == 0) GTEST_SKIP() << "no golden batch of even size with whole gradients";
}

}  // namespace
}  // namespace tessera
