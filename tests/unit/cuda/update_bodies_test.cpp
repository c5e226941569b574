// The update's CUDA kernels, walked on the CPU: bit-equal to the CPU's update, EMA and digests.
#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "common/digest.h"
#include "tests/unit/cuda/host_launch.h"
#include "worker/cuda/state_tables.h"
#include "worker/optimizer/update_kernels.h"

namespace tessera::cuda {
namespace {

using Floats = std::vector<float>;

// One bucket of three tensors with padding between them; the first spans several chunks.
struct Bucket {
  model::Layout layout;
  HostTables tables;
  BucketTable table() const { return {tables.segments.data(), tables.chunks.data(), int64_t(tables.chunks.size())}; }
};
Bucket bucket() {
  Bucket b;
  const auto add = [&](const std::string& name, int64_t count, int64_t offset, bool decayed) {
    model::TensorPlace place;
    place.name = "context_encoder." + name, place.shape = {count}, place.count = count, place.offset = offset, place.decayed = decayed;
    b.layout.tensors.push_back(place);
  };
  add("blocks.0.attn.qkv.weight", 2 * kChunkFloats + 77, 0, true);
  add("blocks.0.attn.qkv.bias", 100, 2 * kChunkFloats + 80, false);
  add("blocks.0.attn.proj.weight", kChunkFloats, 2 * kChunkFloats + 192, true);
  b.layout.buckets.push_back({"context_encoder.blocks.0", model::Network::kContextEncoder, 3 * kChunkFloats + 192, 0, 3});
  b.tables = make_tables(b.layout);
  return b;
}

class UpdateBodies : public testing::TestWithParam<Order> {
 protected:
  void SetUp() override { host::order = GetParam(); }
  Floats random(float scale, bool positive = false) {
    std::normal_distribution<float> normal(0, scale);
    Floats out(static_cast<size_t>(bucket_.layout.buckets[0].size));
    for (const auto& place : bucket_.layout.tensors)
      for (int64_t i = 0; i < place.count; ++i) out[size_t(place.offset + i)] = positive ? std::fabs(normal(engine_)) : normal(engine_);
    return out;
  }
  StateDigest digest_of(const Floats& values, const std::string& prefix, bool target = false) {
    StateDigest sum;
    for (const auto& place : bucket_.layout.tensors) sum += digest_elements(values.data() + place.offset, place.count, 0, lane_seeds(target ? place.target_name() : prefix + place.name));
    return sum;
  }
  StateDigest fold(const std::vector<uint64_t>& parts) {
    StateDigest out;
    launch(SumOfParts<uint64_t>{parts.data(), int64_t(parts.size() / 2), 2, &out.a}, 2, nullptr);
    return out;
  }
  Bucket bucket_ = bucket();
  std::mt19937 engine_{11};
};
INSTANTIATE_TEST_SUITE_P(Orders, UpdateBodies, testing::Values(Order::kForward, Order::kBackward));

TEST_P(UpdateBodies, IsTheCpusUpdateBitForBit) {
  const Floats gradient = random(1e-2f), start = random(0.05f), start_target = random(0.05f), start_m = random(1e-3f), start_v = random(1e-6f, true);
  optimizer::kernels::AdamW undecayed{1.0f / 16, 1e-3f, 0.7f, 1.0f, 1e-8f, 0.9f, 0.999f, 0.1f, 0.001f}, decayed = undecayed;
  decayed.decay = 1.0f - 1e-3f * 0.04f;
  const double momentum = 0.996;
  Floats weights = start, target = start_target, m = start_m, v = start_v;
  std::vector<Half> weights_half(weights.size()), target_half(weights.size());
  std::vector<uint64_t> parts(2 * bucket_.tables.chunks.size());
  launch(Update{bucket_.table(), decayed, undecayed, float(momentum), float(1.0 - momentum), gradient.data(), weights.data(), m.data(), v.data(), target.data(), weights_half.data(), target_half.data(), parts.data()},
         bucket_.table().chunk_count, nullptr);
  Floats want_weights = start, want_target = start_target, want_m = start_m, want_v = start_v;
  for (const auto& place : bucket_.layout.tensors)
    optimizer::kernels::adamw(gradient.data() + place.offset, want_weights.data() + place.offset, want_m.data() + place.offset, want_v.data() + place.offset, place.count, place.decayed ? decayed : undecayed);
  optimizer::kernels::ema(start_target.data(), want_weights.data(), momentum, int64_t(start.size()), want_target.data());
  EXPECT_EQ(weights, want_weights);
  EXPECT_EQ(m, want_m);
  EXPECT_EQ(v, want_v);
  EXPECT_EQ(target, want_target);
  for (const auto& place : bucket_.layout.tensors)
    for (int64_t i = place.offset; i < place.offset + place.count; ++i) {
      Half w, t;
      put(w, weights[size_t(i)]), put(t, target[size_t(i)]);
      ASSERT_EQ(weights_half[size_t(i)].bits, w.bits);
      ASSERT_EQ(target_half[size_t(i)].bits, t.bits);
    }
  StateDigest want = digest_of(weights, "");
  want += digest_of(target, "", true);
  want += digest_of(m, "optimizer.exp_avg.");
  want += digest_of(v, "optimizer.exp_avg_sq.");
  EXPECT_EQ(fold(parts), want);
}

TEST_P(UpdateBodies, TheDigestIsLeftOutWhereNobodyWantsIt) {
  const Floats gradient = random(1e-2f);
  Floats weights = random(0.05f), target = random(0.05f), m = random(1e-3f), v = random(1e-6f, true);
  const optimizer::kernels::AdamW args{1.0f, 1e-3f, 0.7f, 1.0f, 1e-8f, 0.9f, 0.999f, 0.1f, 0.001f};
  Floats want_weights = weights, want_target = target, want_m = m, want_v = v;
  std::vector<uint64_t> parts(2 * bucket_.tables.chunks.size());
  launch(Update{bucket_.table(), args, args, 0.9f, 0.1f, gradient.data(), want_weights.data(), want_m.data(), want_v.data(), want_target.data(), nullptr, nullptr, parts.data()}, bucket_.table().chunk_count, nullptr);
  launch(Update{bucket_.table(), args, args, 0.9f, 0.1f, gradient.data(), weights.data(), m.data(), v.data(), target.data(), nullptr, nullptr, nullptr}, bucket_.table().chunk_count, nullptr);
  EXPECT_EQ(weights, want_weights);
  EXPECT_EQ(target, want_target);
  EXPECT_EQ(m, want_m);
  EXPECT_EQ(v, want_v);
}

TEST_P(UpdateBodies, WithoutATargetOnlyTheWeightsMove) {
  const Floats gradient = random(1e-2f);
  Floats weights = random(0.05f), m = random(1e-3f), v = random(1e-6f, true);
  const Floats before = weights;
  std::vector<uint64_t> parts(2 * bucket_.tables.chunks.size());
  const optimizer::kernels::AdamW args{1.0f, 1e-3f, 0.7f, 1.0f, 1e-8f, 0.9f, 0.999f, 0.1f, 0.001f};
  launch(Update{bucket_.table(), args, args, 0, 0, gradient.data(), weights.data(), m.data(), v.data(), nullptr, nullptr, nullptr, parts.data()}, bucket_.table().chunk_count, nullptr);
  EXPECT_NE(weights, before);
  StateDigest want = digest_of(weights, "");
  want += digest_of(m, "optimizer.exp_avg.");
  want += digest_of(v, "optimizer.exp_avg_sq.");
  EXPECT_EQ(fold(parts), want);
}

TEST_P(UpdateBodies, AGradientsDigestAndSquares) {
  Floats gradient = random(1e-2f);
  std::vector<uint64_t> parts(2 * bucket_.tables.chunks.size());
  std::vector<double> squares(bucket_.tables.chunks.size());
  double total = 0;
  const auto examine = [&] {
    launch(Examine{bucket_.table(), kGradient, gradient.data(), parts.data(), squares.data()}, bucket_.table().chunk_count, nullptr);
    launch(SumOfParts<double>{squares.data(), int64_t(squares.size()), 1, &total}, 1, nullptr);
  };
  examine();
  double want = 0;
  for (const float x : gradient) want += double(x) * double(x);
  EXPECT_EQ(fold(parts), digest_of(gradient, "gradient."));
  EXPECT_NEAR(total, want, 1e-12 * want);
  gradient[size_t(kChunkFloats + 5)] = std::numeric_limits<float>::quiet_NaN();
  examine();
  EXPECT_TRUE(std::isnan(total));
}

TEST_P(UpdateBodies, AverageAndRound) {
  const Floats target = random(1), weights = random(1);
  Floats out(target.size()), want(target.size());
  each(Average{target.data(), weights.data(), float(0.9961), float(1.0 - 0.9961), out.data()}, int64_t(out.size()), nullptr);
  optimizer::kernels::ema(target.data(), weights.data(), 0.9961, int64_t(out.size()), want.data());
  EXPECT_EQ(out, want);
  std::vector<Half> half(out.size());
  each(Round{out.data(), half.data()}, int64_t(out.size()), nullptr);
  for (size_t i = 0; i < out.size(); ++i) {
    Half h;
    put(h, out[i]);
    ASSERT_EQ(half[i].bits, h.bits);
  }
}

TEST(StateTables, ChunksCoverEveryElementOnce) {
  const Bucket b = bucket();
  std::vector<int> seen(size_t(b.layout.buckets[0].size), 0);
  for (const Chunk& chunk : b.tables.chunks) {
    const Segment& segment = b.tables.segments[size_t(chunk.segment)];
    for (int64_t i = chunk.first; i < std::min(chunk.first + kChunkFloats, segment.count); ++i) ++seen[size_t(segment.offset + i)];
  }
  int64_t covered = 0, wanted = 0;
  for (const int n : seen) {
    EXPECT_LE(n, 1);
    covered += n;
  }
  for (const auto& place : b.layout.tensors) wanted += place.count;
  EXPECT_EQ(covered, wanted);
}

}  // namespace
}  // namespace tessera::cuda
