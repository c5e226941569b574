#include <gtest/gtest.h>

#include <set>

#include "tests/unit/model/small_model.h"
#include "worker/model/layout.h"

namespace tessera::model {
namespace {

// Sizes drawn over the space that check_function admits.
FunctionConfig drawn(uint64_t seed) {
  PhiloxStream random(seed, Purpose::kProbe, 1, 0);
  const auto between = [&](int64_t low, int64_t high) { return low + int64_t(random.next_below(uint32_t(high - low + 1))); };
  FunctionConfig f;
  const int64_t heads = between(1, 6), patch = between(2, 17);
  f.model = {"custom", patch, patch * between(2, 9), 4 * heads * between(1, 9), between(1, 5), heads, 0.5 + double(between(0, 90)) / 11.0, false};
  const int64_t predictor_heads = between(1, 4);
  f.predictor = {4 * predictor_heads * between(1, 7), between(1, 4), predictor_heads, 4.0};
  return f;
}

TEST(Layout, PlacesAreAlignedDisjointAndCoverTheBuckets) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const Layout layout = Layout::make(drawn(seed));
    std::set<std::string> names;
    int next_tensor = 0;
    int64_t total = 0, encoder = 0;
    for (size_t b = 0; b < layout.buckets.size(); ++b) {
      const Bucket& bucket = layout.buckets[b];
      ASSERT_EQ(bucket.first_tensor, next_tensor);
      int64_t end = 0;
      for (int i = bucket.first_tensor; i < bucket.last_tensor; ++i) {
        const TensorPlace& place = layout.tensors[size_t(i)];
        int64_t count = 1;
        for (const int64_t size : place.shape) count *= size;
        ASSERT_EQ(place.count, count);
        ASSERT_EQ(place.bucket, int(b));
        ASSERT_EQ(place.offset % 16, 0);
        ASSERT_GE(place.offset, end);          // no overlap
        ASSERT_LT(place.offset - end, 16);     // no gap but padding
        end = place.offset + place.count;
        ASSERT_TRUE(names.insert(place.name).second);
        ASSERT_EQ(layout.find(place.name), &place);
        ASSERT_EQ(place.target_name().empty(), place.network == Network::kPredictor);
      }
      ASSERT_EQ(bucket.size % 16, 0);
      ASSERT_GE(bucket.size, end);
      ASSERT_LT(bucket.size - end, 16);
      next_tensor = bucket.last_tensor;
      total += bucket.size;
      if (bucket.network == Network::kContextEncoder) encoder += bucket.size;
    }
    ASSERT_EQ(next_tensor, int(layout.tensors.size()));
    ASSERT_EQ(layout.total_floats, total);
    ASSERT_EQ(layout.target_floats, encoder);
  }
}

TEST(Layout, DecayFollowsThePublishedRule) {
  const Layout layout = Layout::make(test::small_function());
  EXPECT_TRUE(layout.find("predictor.mask_token")->decayed);
  EXPECT_TRUE(layout.find("context_encoder.blocks.1.mlp.fc2.weight")->decayed);
  EXPECT_FALSE(layout.find("context_encoder.blocks.1.mlp.fc2.bias")->decayed);
  EXPECT_FALSE(layout.find("predictor.predictor_norm.weight")->decayed);
  EXPECT_EQ(layout.find("context_encoder.blocks.9.norm1.weight"), nullptr);
}

TEST(Layout, BucketsAreTheBlocksInForwardOrder) {
  const Layout layout = Layout::make(test::small_function());
  std::vector<std::string> names;
  for (const auto& bucket : layout.buckets) names.push_back(bucket.name);
  EXPECT_EQ(names, (std::vector<std::string>{"context_encoder.patch_embed", "context_encoder.blocks.0", "context_encoder.blocks.1", "context_encoder.norm",
                                             "predictor.predictor_embed", "predictor.predictor_blocks.0", "predictor.predictor_blocks.1", "predictor.predictor_proj"}));
}

}  // namespace
}  // namespace tessera::model
