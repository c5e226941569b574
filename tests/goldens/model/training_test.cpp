// Ten updates against the published code, its schedules and its parameter counts. Tolerances: the goldens' README.
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <cstdlib>

#include "tests/goldens/model/goldens.h"
#include "tests/goldens/model/trajectory.h"
#include "worker/optimizer/update.h"

namespace tessera {
namespace {

TEST(Training, Trajectory) {
  TESSERA_GOLDEN_CASES(cases, "", "train_*");
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    goldens::Trajectory t(path);
    goldens::fill_state(t.state, goldens::load(path / "init.safetensors"), goldens::MissingTarget::kCopy);
    t.run_to_end();
    t.expect_final();
  }
}

TEST(Training, ParameterGroups) {
  TESSERA_GOLDEN_CASES(cases, "", "train_*");
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const goldens::Trajectory t(path);
    for (const auto& group : t.meta.at("param_groups")) {
      const bool excluded = group.at("WD_exclude").get<bool>();
      for (const auto& name : group.at("params")) {
        if (name.get<std::string>().ends_with("pos_embed")) continue;
        std::string ours = name.get<std::string>();
        if (ours.starts_with("encoder.")) ours = "context_" + ours;
        const model::TensorPlace* place = t.state.layout.find(ours);
        ASSERT_NE(place, nullptr) << name;
        EXPECT_EQ(place->decayed, !excluded) << name;
      }
    }
  }
}

void expect_near_relative(double ours, double theirs, double tolerance, const std::string& what) {
  EXPECT_TRUE(goldens::within("schedules: lr, weight decay, momentum (relative)", std::abs(ours - theirs) / std::max(std::abs(theirs), 1e-300), tolerance)) << what << ": " << ours << " against " << theirs;
}

TEST(Training, Schedules) {
  TESSERA_GOLDEN_CASES(cases, "schedules", "*.json");
  int compared = 0;
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const auto file = goldens::load_json(path);
    if (!file.contains("rows")) continue;
    FunctionConfig f;
    const RunLength length = goldens::apply_train(file.at("train"), f);
    const optimizer::Schedule schedule(f, length);
    for (const auto& row : file.at("rows")) {
      const optimizer::StepRates rates = schedule.at(row[0].get<int64_t>() - 1);
      const std::string at = "update " + std::to_string(row[0].get<int64_t>());
      expect_near_relative(rates.lr, row[1].get<double>(), 1e-12, at + " lr");
      expect_near_relative(rates.weight_decay, row[2].get<double>(), 1e-12, at + " weight decay");
      expect_near_relative(rates.ema, row[3].get<double>(), 1e-12, at + " momentum");
      ++compared;
    }
  }
  if (compared == 0) GTEST_SKIP() << "no schedules with rows";
}

struct Counted {
  int64_t trainable = 0, tensors = 0;
};
Counted count(const FunctionConfig& f, model::Network network) {
  Counted c;
  for (const auto& place : model::Layout::make(f).tensors)
    if (place.network == network) c.trainable += place.count, ++c.tensors;
  return c;
}

TEST(Training, ParameterCounts) {
  TESSERA_GOLDEN_CASES(cases, "", "params.json");
  const auto file = goldens::load_json(cases[0]);
  const auto expect = [](const nlohmann::json& wanted, const FunctionConfig& f, model::Network network, int64_t width) {
    const Counted c = count(f, network);
    const int64_t table = f.model.grid() * f.model.grid() * width;
    EXPECT_EQ(c.trainable, wanted.at("trainable").get<int64_t>());
    EXPECT_EQ(c.trainable + table, wanted.at("total_with_position_table").get<int64_t>());
    EXPECT_EQ(c.tensors + 1, wanted.at("tensors").get<int64_t>());  // theirs has the position table
  };
  const auto named = [](const std::string& name, int64_t patch, int64_t size, int64_t depth, int64_t width) {
    auto config = parse_config("function: {model: {name: " + name + ", patch_size: " + std::to_string(patch) + ", image_size: " + std::to_string(size) +
                                   "}, predictor: {depth: " + std::to_string(depth) + ", embed_dim: " + std::to_string(width) + "}, masks: {min_keep: 0}}",
                               "test", {});
    if (!config) throw std::runtime_error(config.error().message);
    return config->function;
  };
  for (const auto& entry : file.at("encoders")) {
    SCOPED_TRACE(entry.dump());
    const auto f = named(entry.at("model"), entry.at("patch"), entry.at("crop"), 6, 384);
    expect(entry.at("encoder"), f, model::Network::kContextEncoder, f.model.embed_dim);
  }
  for (const auto& entry : file.at("predictors")) {
    SCOPED_TRACE(entry.dump());
    const int64_t side = int64_t(std::lround(std::sqrt(entry.at("num_patches").get<double>())));
    const auto f = named(entry.at("encoder_model"), 16, 16 * side, entry.at("pred_depth"), entry.at("pred_emb_dim"));
    EXPECT_EQ(f.predictor.num_heads, entry.at("heads").get<int64_t>());
    expect(entry.at("predictor"), f, model::Network::kPredictor, f.predictor.embed_dim);
  }
  for (const auto& entry : file.at("published_configs")) {
    SCOPED_TRACE(entry.dump());
    const auto f = named(entry.at("model"), entry.at("patch"), entry.at("crop"), entry.at("pred_depth"), entry.at("pred_emb_dim"));
    expect(entry.at("encoder"), f, model::Network::kContextEncoder, f.model.embed_dim);
    expect(entry.at("predictor"), f, model::Network::kPredictor, f.predictor.embed_dim);
  }
}

}  // namespace
}  // namespace tessera
