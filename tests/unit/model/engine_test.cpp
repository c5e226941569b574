// What DESIGN section 7 promises of a tile's gradient.
#include <gtest/gtest.h>

#include <ATen/Parallel.h>
#include <limits>

#include "tests/unit/model/small_model.h"

namespace tessera::model {
namespace {

struct Fixture {
  FunctionConfig function;
  State state;
  std::unique_ptr<Engine> engine;

  explicit Fixture(const std::string& precision = "fp32") : function(test::small_function()) {
    function.precision = precision;
    state = State::initial(function);
    for (auto& buffer : state.target)  // target and context must differ
      if (buffer.defined()) buffer.mul_(0.75);
    engine = std::move(*Engine::make(function, "cpu"));
  }
  at::Tensor gradient(const Tile& tile) {
    FlatBuffers out = make_buffers(state.layout);
    engine->gradient(state, tile, out, false);
    return test::concatenated(out);
  }
};

TEST(Engine, ATileAloneAfterOthersAndRepeatedIsBitEqual) {
  for (const char* precision : {"fp32", "bf16"}) {
    SCOPED_TRACE(precision);
    at::set_num_threads(1);
    Fixture first(precision), second(precision);
    std::vector<Tile> tiles;
    for (uint64_t i = 0; i < 6; ++i) tiles.push_back(test::make_tile(first.function, 4, 7 + int64_t(i), 5, i));  // another context length each
    const at::Tensor alone = first.gradient(tiles[3]);
    for (const Tile& tile : tiles) second.gradient(tile);
    EXPECT_TRUE(second.gradient(tiles[3]).equal(alone));
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(second.gradient(tiles[3]).equal(alone));
    EXPECT_FALSE(second.gradient(tiles[2]).equal(alone));
  }
}

TEST(Engine, GradientOverwritesWhatWasThere) {
  Fixture f;
  const Tile tile = test::make_tile(f.function, 3, 9, 5, 1);
  const at::Tensor fresh = f.gradient(tile);
  FlatBuffers used = make_buffers(f.state.layout);
  for (const auto& place : f.state.layout.tensors) f.state.view(used, place).fill_(3.0f);
  f.engine->gradient(f.state, tile, used, false);
  EXPECT_TRUE(test::concatenated(used).equal(fresh));
}

// What the exchange rests on: each bucket is named once, last bucket first, and what it holds then is what it holds at the end.
TEST(Engine, BucketsAreWholeWhenTheyAreNamed) {
  for (const char* precision : {"fp32", "bf16"}) {
    SCOPED_TRACE(precision);
    at::set_num_threads(1);
    Fixture f(precision);
    const Tile tile = test::make_tile(f.function, 4, 9, 5, 1);
    const at::Tensor plain = f.gradient(tile);
    FlatBuffers gradient = make_buffers(f.state.layout), named;
    for (const auto& place : f.state.layout.tensors) f.state.view(gradient, place).fill_(3.0f);
    std::vector<size_t> order;
    named.resize(gradient.size());
    f.engine->gradient(f.state, tile, gradient, false, {[&](size_t bucket) { order.push_back(bucket), named[bucket] = gradient[bucket].clone(); }, {}});
    ASSERT_EQ(order.size(), gradient.size());
    for (size_t i = 0; i < order.size(); ++i) {
      EXPECT_EQ(order[i], order.size() - 1 - i);
      ASSERT_TRUE(named[i].defined());
      EXPECT_TRUE(named[i].equal(gradient[i])) << f.state.layout.buckets[i].name << " was written after it was named";
    }
    EXPECT_TRUE(test::concatenated(gradient).equal(plain));
  }
}

// The target may be on its way until then: what stood there before must not matter, and the moment comes once, before any bucket.
TEST(Engine, TheTargetIsNotReadBeforeItsMoment) {
  for (const char* masking : {"output", "input"}) {
    SCOPED_TRACE(masking);
    at::set_num_threads(1);
    Fixture f;
    f.function.masks.target_masking = masking;
    f.engine = std::move(*Engine::make(f.function, "cpu"));
    const Tile tile = test::make_tile(f.function, 4, 9, 5, 1);
    const at::Tensor plain = f.gradient(tile);
    FlatBuffers target, gradient = make_buffers(f.state.layout);
    for (auto& buffer : f.state.target) {
      target.push_back(buffer.defined() ? buffer.clone() : at::Tensor());
      if (buffer.defined()) buffer.fill_(std::numeric_limits<float>::quiet_NaN());
    }
    int moments = 0, buckets = 0;
    const auto arrive = [&] {
      ++moments;
      EXPECT_EQ(buckets, 0);
      for (size_t i = 0; i < target.size(); ++i)
        if (target[i].defined()) f.state.target[i].copy_(target[i]);
    };
    f.engine->gradient(f.state, tile, gradient, true, {[&](size_t) { ++buckets; }, arrive});
    EXPECT_EQ(moments, 1);
    EXPECT_TRUE(test::concatenated(gradient).equal(plain));
  }
}

// DESIGN promises equality within a class, and the class holds the thread count; the sums that are ours keep theirs for
// any count.
TEST(Engine, TwoThreadsAreDeterministicAndClose) {
  Fixture f;
  const Tile tile = test::make_tile(f.function, 4, 9, 5, 1);
  at::set_num_threads(1);
  const at::Tensor one = f.gradient(tile);
  at::set_num_threads(2);
  const at::Tensor two = f.gradient(tile), again = f.gradient(tile);
  at::set_num_threads(1);
  EXPECT_TRUE(two.equal(again));
  EXPECT_LE((one - two).abs().max().item<double>(), 1e-5 * one.abs().max().item<double>());
}

// d loss / d weight by central differences of outputs().loss, in every tensor.
TEST(Engine, GradientAgreesWithFiniteDifferences) {
  for (const char* kind : {"smooth_l1", "l2"}) {
    SCOPED_TRACE(kind);
    Fixture f;
    f.function.optimizer.loss = kind;
    f.engine = std::move(*Engine::make(f.function, "cpu"));
    for (auto& buffer : f.state.weights) buffer.mul_(2);  // larger gradients than at initialisation
    const Tile tile = test::make_tile(f.function, 2, 9, 5, 1, /*contexts=*/2, /*targets=*/3);
    FlatBuffers gradient = make_buffers(f.state.layout);
    f.engine->gradient(f.state, tile, gradient, false);
    for (const auto& place : f.state.layout.tensors) {
      const at::Tensor g = f.state.view(gradient, place).reshape(-1);
      const int64_t i = g.abs().argmax().item<int64_t>();  // the largest element: the least noise
      float* weight = f.state.weights[size_t(place.bucket)].mutable_data_ptr<float>() + place.offset + i;
      const double wanted = g[i].item<double>(), scale = std::max(1e-2, std::min(1.0, 2e-4 / std::max(1e-12, std::abs(wanted))));
      const float kept = *weight, h = float(2e-2 * scale);
      *weight = kept + h;
      const double up = f.engine->outputs(f.state, tile).loss;
      *weight = kept - h;
      const double down = f.engine->outputs(f.state, tile).loss;
      *weight = kept;
      EXPECT_NEAR((up - down) / (2 * double(h)), wanted, 0.02 * std::abs(wanted) + 2e-6) << place.name;
    }
  }
}

TEST(Engine, OutputsHaveTheOrderTargetContextImage) {
  Fixture f;
  const Tile tile = test::make_tile(f.function, 2, 9, 5, 1, 2, 3);
  const TileOutputs out = f.engine->outputs(f.state, tile);
  ASSERT_EQ(out.wanted_bkd.sizes(), (std::vector<int64_t>{12, 5, 48}));
  for (int64_t target = 0; target < 3; ++target)
    for (int64_t context = 0; context < 2; ++context)
      for (int64_t image = 0; image < 2; ++image) {
        const at::Tensor rows = out.target_normed_bnd[image].index_select(0, tile.targets[size_t(target)][image]);
        EXPECT_TRUE(out.wanted_bkd[(target * 2 + context) * 2 + image].equal(rows));
      }
  EXPECT_EQ(out.context_bkd.sizes(), (std::vector<int64_t>{4, 9, 48}));
}

// Masked at the input, the target encoder sees a target's patches and nothing else: another image around them changes
// nothing, and a target that covers everything is the whole image.
TEST(Engine, TargetMaskedAtTheInputSeesItsBlockAlone) {
  Fixture f;
  f.function.masks.target_masking = "input";
  f.engine = std::move(*Engine::make(f.function, "cpu"));
  Tile tile = test::make_tile(f.function, 2, 9, 5, 1, 2, 3);
  const TileOutputs out = f.engine->outputs(f.state, tile);
  ASSERT_EQ(out.target_normed_bnd.sizes(), (std::vector<int64_t>{6, 5, 48}));
  ASSERT_EQ(out.wanted_bkd.sizes(), (std::vector<int64_t>{12, 5, 48}));
  for (int64_t target = 0; target < 3; ++target)
    for (int64_t image = 0; image < 2; ++image) {
      const at::Tensor alone = out.target_normed_bnd[target * 2 + image];
      for (int64_t context = 0; context < 2; ++context) EXPECT_TRUE(out.wanted_bkd[(target * 2 + context) * 2 + image].equal(alone));
    }
  Tile other = tile;  // every patch outside target 0 of image 0 blackened
  other.pixels = tile.pixels.clone();
  const int64_t patch = f.function.model.patch_size, grid = f.function.model.grid();
  for (int64_t i = 0; i < grid * grid; ++i)
    if (!(tile.targets[0][0] == i).any().item<bool>()) other.pixels[0].narrow(0, i / grid * patch, patch).narrow(1, i % grid * patch, patch).zero_();
  EXPECT_TRUE(f.engine->outputs(f.state, other).target_normed_bnd[0].equal(out.target_normed_bnd[0]));
  Fixture whole;
  EXPECT_FALSE(whole.engine->outputs(whole.state, tile).wanted_bkd.equal(out.wanted_bkd));
  tile.targets = {at::arange(grid * grid, at::kLong).repeat({2, 1})};
  EXPECT_TRUE(at::allclose(f.engine->outputs(f.state, tile).wanted_bkd, whole.engine->outputs(whole.state, tile).wanted_bkd, 0, 1e-6));
  FlatBuffers gradient = make_buffers(f.state.layout);
  EXPECT_GT(f.engine->gradient(f.state, tile, gradient, true).loss, 0);
}

TEST(Engine, FeaturesAreTheTargetOutputs) {
  Fixture f;
  const Tile tile = test::make_tile(f.function, 3, 9, 5, 1);
  const at::Tensor target = f.engine->features(f.state, tile.pixels, false);
  EXPECT_TRUE(target.equal(f.engine->outputs(f.state, tile).target_bnd));
  EXPECT_FALSE(target.equal(f.engine->features(f.state, tile.pixels, true)));
}

TEST(Engine, EffectiveRankCountsDirections) {
  Fixture f;
  const Tile tile = test::make_tile(f.function, 4, 9, 5, 1);
  FlatBuffers gradient = make_buffers(f.state.layout);
  const double rank = f.engine->gradient(f.state, tile, gradient, true).effective_rank;
  EXPECT_GT(rank, 1);
  EXPECT_LE(rank, 48);
  EXPECT_EQ(f.engine->gradient(f.state, tile, gradient, false).effective_rank, 0);
}

TEST(Engine, ADeviceThatIsNotThereIsAConfigurationError) {
  const auto engine = Engine::make(test::small_function(), "tpu:0");
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, ErrorCode::kFixConfig);
  EXPECT_NE(engine.error().message.find("tpu:0"), std::string::npos);
}

}  // namespace
}  // namespace tessera::model
