#include "worker/trainer/header_check.h"

#include <gtest/gtest.h>

namespace tessera::trainer {
namespace {

FunctionConfig small() {
  FunctionConfig f;
  f.model.image_size = 32, f.model.patch_size = 8;
  f.batch.tile_size = 2;
  f.masks.contexts = 1, f.masks.targets = 2;
  return f;
}

proto::TileHeader good() {
  proto::TileHeader h;
  h.image_size = 32, h.grid = 4, h.context_length = 3, h.target_length = 2;
  h.sample_ids = {5, 6};
  h.contexts = {{0, 1, 15, 0, 2, 3}};
  h.targets = {{4, 5, 6, 7}, {8, 9, 10, 11}};
  h.pixel_bytes = 2 * 32 * 32 * 3;
  return h;
}

TEST(CheckHeader, TakesAGoodOne) { EXPECT_TRUE(check_header(good(), small())); }

TEST(CheckHeader, RefusesWhateverWouldLeadAKernelAstray) {
  const std::vector<void (*)(proto::TileHeader&)> damages{
      [](proto::TileHeader& h) { h.sample_ids.pop_back(); },
      [](proto::TileHeader& h) { h.image_size = 64; },
      [](proto::TileHeader& h) { h.grid = 8; },
      [](proto::TileHeader& h) { h.pixel_bytes -= 1; },
      [](proto::TileHeader& h) { h.pixel_bytes = -1; },
      [](proto::TileHeader& h) { h.contexts.clear(); },
      [](proto::TileHeader& h) { h.contexts.push_back(h.contexts[0]); },
      [](proto::TileHeader& h) { h.targets.pop_back(); },
      [](proto::TileHeader& h) { h.contexts[0][2] = 16; },  // one past the last patch
      [](proto::TileHeader& h) { h.targets[1][3] = 65535; },
      [](proto::TileHeader& h) { h.contexts[0].pop_back(); },
      [](proto::TileHeader& h) { h.targets[0].push_back(1); },
      [](proto::TileHeader& h) { h.context_length = 0, h.contexts[0].clear(); },
      [](proto::TileHeader& h) { h.context_length = -3; },
      [](proto::TileHeader& h) { h.target_length = 17; },
  };
  for (size_t i = 0; i < damages.size(); ++i) {
    auto header = good();
    damages[i](header);
    const Status checked = check_header(header, small());
    ASSERT_FALSE(checked) << "damage " << i;
    EXPECT_EQ(checked.error().code, ErrorCode::kRetry);
  }
}

}  // namespace
}  // namespace tessera::trainer
