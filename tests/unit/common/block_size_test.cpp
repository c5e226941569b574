// Mask geometry: properties over many grids, and the published sampler's sizes from goldens/masks/sizes_*.json.
#include "common/block_size.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace tessera {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> golden_files(fs::path* folder) {
  const char* value = std::getenv("TESSERA_GOLDENS");
  *folder = fs::path(value != nullptr && *value != 0 ? value : "../shared/goldens") / "masks";
  std::vector<fs::path> out;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(*folder, none)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("sizes_") && name.ends_with(".json")) out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

Pair pair_of(const nlohmann::json& j) { return {j[0].get<double>(), j[1].get<double>()}; }

// A kind ("target", "context") of one grid: each stored sample, both ends of each run of the whole mapping, and the
// least area, which is known exactly since the runs cover all 2^24 draws.
void expect_kind(const nlohmann::json& grid, const char* kind, const Pair& scale, const Pair& aspect, const std::string& file) {
  const int h = grid["H"], w = grid["W"];
  const auto at = [&](int64_t k) { return reference_block_size(double(k) * 0x1p-24, h, w, scale, aspect); };
  for (const auto& row : grid[kind]["samples_k_h_w"]) ASSERT_EQ(at(row[0]), (BlockSize{row[1], row[2]})) << file << " " << kind << " " << row.dump();
  const auto& runs = grid[kind]["runs_kstart_h_w"];
  int least = h * w;
  for (size_t i = 0; i < runs.size(); ++i) {
    const BlockSize size{runs[i][1], runs[i][2]};
    const int64_t last = (i + 1 < runs.size() ? runs[i + 1][0].get<int64_t>() : int64_t{1} << 24) - 1;
    ASSERT_EQ(at(runs[i][0]), size) << file << " " << kind << " run " << i;
    ASSERT_EQ(at(last), size) << file << " " << kind << " end of run " << i;
    least = std::min(least, size.area());
  }
  MaskConfig masks;
  masks.mode = "reference";
  EXPECT_EQ(smallest_block_area(masks, scale, aspect, h, w), least) << file << " " << kind << " " << h << "x" << w;
}

TEST(BlockSize, GoldenSizesAndTheirLeastArea) {
  fs::path folder;
  const auto files = golden_files(&folder);
  if (files.empty()) {
    const char* required = std::getenv("TESSERA_REQUIRE_SHARED");
    if (required != nullptr && std::string(required) == "1") FAIL() << "no sizes_*.json in " << folder;
    GTEST_SKIP() << "no sizes_*.json in " << folder;
  }
  for (const auto& path : files) {
    std::ifstream in(path);
    const auto document = nlohmann::json::parse(in);
    for (const auto& grid : document["grids"]) {
      expect_kind(grid, "target", pair_of(grid["pred_mask_scale"]), pair_of(grid["aspect_ratio"]), path.filename());
      expect_kind(grid, "context", pair_of(grid["enc_mask_scale"]), {1.0, 1.0}, path.filename());
    }
  }
}

TEST(BlockSize, StaysInsideTheGrid) {
  for (int h = 2; h <= 32; h += 3)
    for (int w = 2; w <= 32; w += 5)
      for (int i = 0; i < 400; ++i) {
        const double u = i / 400.0, v = (i * 7 % 400) / 400.0;
        const BlockSize reference = reference_block_size(u, h, w, {0.15, 0.2}, {0.75, 1.5});
        ASSERT_TRUE(reference.height >= 0 && reference.height < h && reference.width >= 0 && reference.width < w);
        const BlockSize uniform = uniform_block_size(u, v, h, w, {0.001, 1.0}, {0.05, 20.0});
        ASSERT_TRUE(uniform.height >= 1 && uniform.height <= h && uniform.width >= 1 && uniform.width <= w);
      }
}

TEST(BlockSize, NoDrawIsSmallerThanTheLeastArea) {
  MaskConfig masks;
  for (const char* mode : {"uniform", "reference"}) {
    masks.mode = mode;
    for (int grid = 4; grid <= 28; grid += 4) {
      const int least = smallest_block_area(masks, masks.target_scale, masks.target_aspect, grid, grid);
      int seen = grid * grid;
      for (int i = 0; i < 20000; ++i) {
        const double u = (i * 2654435761u % 16777216u) * 0x1p-24, v = (i * 40503u % 16777216u) * 0x1p-24;
        const BlockSize size = masks.mode == "uniform" ? uniform_block_size(u, v, grid, grid, masks.target_scale, masks.target_aspect)
                                                       : reference_block_size(u, grid, grid, masks.target_scale, masks.target_aspect);
        seen = std::min(seen, size.area());
      }
      EXPECT_GE(seen, least) << mode << " grid " << grid;
    }
  }
}

TEST(BlockSize, CheckNamesTheFix) {
  MaskConfig masks;
  EXPECT_TRUE(check_masks(masks, 14, 14));
  const auto small = check_masks(masks, 6, 6);
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().code, ErrorCode::kFixConfig);
  // Following the sentence's advice must succeed, and one more must fail.
  const std::string advice = "set function.masks.min_keep <= ";
  const size_t where = small.error().message.find(advice);
  ASSERT_NE(where, std::string::npos) << small.error().message;
  masks.min_keep = std::stoll(small.error().message.substr(where + advice.size()));
  EXPECT_TRUE(check_masks(masks, 6, 6));
  ++masks.min_keep;
  EXPECT_FALSE(check_masks(masks, 6, 6));
  EXPECT_FALSE(check_masks({}, 1, 8));
  MaskConfig multiple;
  multiple.context_multiple = 1024;
  EXPECT_FALSE(check_masks(multiple, 14, 14));
}

}  // namespace
}  // namespace tessera
