// Block sizes and masks against goldens/masks (format: goldens/README.md). Cases are found by name pattern.
#include <cmath>
#include <map>
#include <random>

#include "common/block_size.h"
#include "common/safetensors.h"
#include "data_loader/masking/masking.h"
#include "shared_files.h"

namespace tessera::data::test {
namespace {

const fs::path kFolder = goldens_dir() / "masks";

Pair pair_of(const nlohmann::json& j) { return {j[0].get<double>(), j[1].get<double>()}; }

MaskConfig config_of(const nlohmann::json& c) {
  MaskConfig masks;
  masks.mode = "reference";
  masks.contexts = c["nenc"], masks.targets = c["npred"], masks.min_keep = c["min_keep"], masks.allow_overlap = c["allow_overlap"];
  if (c.contains("enc_mask_scale")) masks.context_scale = pair_of(c["enc_mask_scale"]), masks.target_scale = pair_of(c["pred_mask_scale"]), masks.target_aspect = pair_of(c["aspect_ratio"]);
  return masks;
}

// The published collator's generators: sizes from mt19937(counter), corners from one generator per case.
struct Published {
  int grid_h, grid_w;
  MaskConfig masks;
  std::mt19937 corners;
  uint32_t counter = 0;
  BlockSize target, context;

  Result<GroupMasks> call(int batch, bool truncate = true) {
    std::mt19937 sizes(counter++);
    const double u1 = double(sizes() & 0xFFFFFFu) * 0x1p-24, u2 = double(sizes() & 0xFFFFFFu) * 0x1p-24;
    target = reference_block_size(u1, grid_h, grid_w, masks.target_scale, masks.target_aspect);
    context = reference_block_size(u2, grid_h, grid_w, masks.context_scale, masks.context_aspect);
    return reference_masks(masks, grid_h, grid_w, batch, target, context, [this](int range) { return int(uint32_t(corners()) % uint32_t(range)); }, truncate);
  }
};

void expect_sizes(const nlohmann::json& grid, const char* which, const Pair& scale, const Pair& aspect) {
  const int h = grid["H"], w = grid["W"];
  const auto at = [&](int64_t k) { return reference_block_size(double(k) * 0x1p-24, h, w, scale, aspect); };
  for (const auto& s : grid[which]["samples_k_h_w"]) ASSERT_EQ(at(s[0]), (BlockSize{s[1], s[2]})) << which << " " << s.dump();
  const auto& runs = grid[which]["runs_kstart_h_w"];
  for (size_t i = 0; i < runs.size(); ++i) {
    const int64_t last = (i + 1 < runs.size() ? runs[i + 1][0].get<int64_t>() : int64_t{1} << 24) - 1;
    ASSERT_EQ(at(runs[i][0]), (BlockSize{runs[i][1], runs[i][2]})) << which << " run " << i;
    ASSERT_EQ(at(last), (BlockSize{runs[i][1], runs[i][2]})) << which << " end of run " << i;
  }
}

TEST(GoldenMasks, BlockSizes) {
  const auto files = files_like(kFolder, "sizes_", ".json");
  NEED_SHARED(!files.empty(), kFolder);
  for (const fs::path& path : files) {
    const auto document = read_json(path);
    for (const auto& grid : document["grids"]) {
      const Pair context = pair_of(grid["enc_mask_scale"]), target = pair_of(grid["pred_mask_scale"]), aspect = pair_of(grid["aspect_ratio"]);
      expect_sizes(grid, "target", target, aspect);
      expect_sizes(grid, "context", context, {1.0, 1.0});
      for (const auto& row : grid["counter_k1_k2_target_context"]) {
        std::mt19937 sizes(row[0].get<uint32_t>());
        const uint32_t k1 = sizes() & 0xFFFFFFu, k2 = sizes() & 0xFFFFFFu;
        ASSERT_EQ(k1, row[1].get<uint32_t>());
        ASSERT_EQ(k2, row[2].get<uint32_t>());
        ASSERT_EQ(reference_block_size(k1 * 0x1p-24, grid["H"], grid["W"], target, aspect), (BlockSize{row[3], row[4]}));
        ASSERT_EQ(reference_block_size(k2 * 0x1p-24, grid["H"], grid["W"], context, {1.0, 1.0}), (BlockSize{row[5], row[6]}));
      }
    }
  }
}

void expect_lists(const std::vector<std::vector<PatchList>>& ours, const nlohmann::json& theirs, const std::string& what) {
  ASSERT_EQ(ours.size(), theirs.size()) << what;
  for (size_t j = 0; j < ours.size(); ++j) {
    ASSERT_EQ(ours[j].size(), theirs[j].size()) << what;
    for (size_t b = 0; b < ours[j].size(); ++b) ASSERT_EQ(ours[j][b], theirs[j][b].get<PatchList>()) << what << " mask " << j << " image " << b;
  }
}

TEST(GoldenMasks, FixedCorners) {
  const auto files = files_like(kFolder, "fixed_corners", ".json");
  NEED_SHARED(!files.empty(), kFolder);
  for (const fs::path& path : files) {
    const auto document = read_json(path);
    for (const auto& c : document["cases"]) {
      const auto& corners = c["corners_top_left_in_order_of_draw"];
      const auto run = [&](bool truncate) {
        size_t used = 0;
        const auto next = [&](int range) {
          const int value = used / 2 < corners.size() ? corners[used / 2][used % 2].get<int>() : -1;
          EXPECT_TRUE(value >= 0 && value < range) << "corner " << used;
          ++used;
          return value < 0 ? 0 : value;
        };
        auto group = reference_masks(config_of(c), c["H"], c["W"], c["batch"], {c["target_hw"][0], c["target_hw"][1]}, {c["context_hw"][0], c["context_hw"][1]}, next, truncate);
        EXPECT_EQ(used, corners.size() * 2);
        return group;
      };
      const auto group = run(true), whole = run(false);
      ASSERT_TRUE(group && whole);
      expect_lists(group->contexts, c["masks_enc"], "contexts");
      expect_lists(group->targets, c["masks_pred"], "targets");
      EXPECT_EQ(group->dropped_regions, c["dropped_region_warnings"].get<int>());
      for (size_t b = 0; b < c["batch"].get<size_t>(); ++b)
        for (size_t j = 0; j < whole->contexts.size(); ++j) EXPECT_EQ(whole->contexts[j][b].size(), c["context_len_before_truncation"][b][j].get<size_t>());
    }
  }
}

void expect_tensor(const SafetensorsFile& file, const std::string& name, const std::vector<PatchList>& images) {
  const TensorView* stored = file.find(name);
  ASSERT_NE(stored, nullptr) << name;
  ASSERT_EQ(stored->shape, (std::vector<int64_t>{int64_t(images.size()), int64_t(images[0].size())})) << name;
  const auto* value = static_cast<const int64_t*>(stored->data);
  for (const PatchList& list : images)
    for (const uint16_t patch : list) ASSERT_EQ(int64_t{patch}, *value++) << name;
}

TEST(GoldenMasks, SeededCollator) {
  const auto files = files_like(kFolder, "seeded", ".json");
  NEED_SHARED(!files.empty(), kFolder);
  for (const fs::path& path : files) {
    const auto document = read_json(path);
    const auto file = SafetensorsFile::open(fs::path(path).replace_extension(".safetensors"));
    ASSERT_TRUE(file) << file.error().message;
    for (const auto& c : document["cases"]) {
      const int grid = c["img"].get<int>() / c["patch"].get<int>();
      Published published{grid, grid, config_of(c["collator"]), std::mt19937(c["global_seed"].get<uint32_t>()), 0, {}, {}};
      for (int call = 0; call < c["calls"].get<int>(); ++call) {
        const auto group = published.call(c["batch"]);
        ASSERT_TRUE(group) << group.error().message;
        const std::string name = "case" + std::to_string(c["case"].get<int>()) + ".call" + std::to_string(call);
        for (size_t j = 0; j < group->contexts.size(); ++j) expect_tensor(*file, name + ".enc." + std::to_string(j), group->contexts[j]);
        for (size_t i = 0; i < group->targets.size(); ++i) expect_tensor(*file, name + ".pred." + std::to_string(i), group->targets[i]);
      }
    }
  }
}

using Map = std::vector<double>;
void count(Map& map, const std::vector<PatchList>& images) {
  for (const PatchList& list : images)
    for (const uint16_t patch : list) map[patch] += 1;
}

void expect_near(const SafetensorsFile& file, const std::string& name, const Map& map, double per, double tolerance) {
  const TensorView* stored = file.find(name);
  ASSERT_NE(stored, nullptr) << name;
  ASSERT_EQ(stored->count(), int64_t(map.size())) << name;
  const auto* value = static_cast<const float*>(stored->data);
  for (size_t p = 0; p < map.size(); ++p) ASSERT_NEAR(map[p] / per, double(value[p]), tolerance) << name << " patch " << p;
}

double mean_of_hist(const std::map<int, int>& hist) {
  double sum = 0, n = 0;
  for (const auto& [value, times] : hist) sum += double(value) * times, n += times;
  return sum / n;
}

// draw_group_masks in reference mode, with Philox words, has the published distribution: maps and mean context length.
void expect_statistics(const nlohmann::json& document, const SafetensorsFile& file, const nlohmann::json& row) {
  const int grid = document["grid"], batch = row["B"];
  FunctionConfig f;
  f.seed = 11;
  f.model.image_size = document["img"], f.model.patch_size = document["patch"];
  f.masks = config_of(document["collator"]);
  f.batch.tile_size = batch, f.batch.tiles = 1;
  const int batches = batch == 1 ? 4000 : 400;
  Map target(size_t(grid * grid), 0.0), context = target;
  double length = 0, length_squared = 0;
  for (int step = 0; step < batches; ++step) {
    const auto group = draw_group_masks(f, step, 0);
    ASSERT_TRUE(group) << group.error().message;
    for (const auto& images : group->targets) count(target, images);
    for (const auto& images : group->contexts) count(context, images);
    length += group->context_length, length_squared += double(group->context_length) * group->context_length;
  }
  const double mean = length / batches, variance = length_squared / batches - mean * mean;
  const double stored_n = row["batches"], stored_std = row["Kc_per_batch"]["std"];
  const double error = std::sqrt(variance / batches + stored_std * stored_std / stored_n);
  EXPECT_NEAR(mean, row["Kc_per_batch"]["mean"].get<double>(), 5 * error) << "B " << batch << " grid " << grid;
  const std::string b = "B" + std::to_string(batch);
  const double images = double(batches) * batch, tolerance = batch == 1 ? 0.06 : grid > 20 ? 0.05 : 0.03;
  expect_near(file, b + ".target_coverage", target, images * double(f.masks.targets), tolerance);
  expect_near(file, b + ".context_coverage_truncated", context, images * double(f.masks.contexts), tolerance);
}

TEST(GoldenMasks, Statistics) {
  const auto files = files_like(kFolder, "stats_", ".json");
  NEED_SHARED(!files.empty(), kFolder);
  for (const fs::path& path : files) {
    const auto document = read_json(path);
    const auto file = SafetensorsFile::open(fs::path(path).replace_extension(".safetensors"));
    ASSERT_TRUE(file) << file.error().message;
    for (const auto& row : document["batches"]) expect_statistics(document, *file, row);
  }
}

// With the published generators the counts and histograms are not close but equal.
TEST(GoldenMasks, CountsWithPublishedGenerators) {
  const auto files = files_like(kFolder, "stats_", ".json");
  NEED_SHARED(!files.empty(), kFolder);
  for (const fs::path& path : files) {
    const auto document = read_json(path);
    for (const auto& row : document["batches"]) {
      const int grid = document["grid"];
      Published published{grid, grid, config_of(document["collator"]), std::mt19937(row["global_seed"].get<uint32_t>()), row["counters"][0].get<uint32_t>(), {}, {}};
      std::map<std::pair<int, int>, int> targets, contexts;
      std::map<int, int> lengths;
      int redraws = 0;
      for (int call = 0; call < row["batches"].get<int>(); ++call) {
        const auto group = published.call(row["B"]);
        ASSERT_TRUE(group) << group.error().message;
        ++targets[{published.target.height, published.target.width}];
        ++contexts[{published.context.height, published.context.width}];
        ++lengths[group->context_length];
        redraws += group->redraws;
      }
      for (const auto& t : row["target_hw_counts"]) EXPECT_EQ((targets[{t[0], t[1]}]), t[2].get<int>()) << path;
      for (const auto& t : row["context_hw_counts"]) EXPECT_EQ((contexts[{t[0], t[1]}]), t[2].get<int>()) << path;
      for (const auto& t : row["Kc_per_batch"]["hist"]) EXPECT_EQ(lengths[t[0].get<int>()], t[1].get<int>()) << path << " B " << row["B"];
      EXPECT_NEAR(mean_of_hist(lengths), row["Kc_per_batch"]["mean"].get<double>(), 1e-9);
      EXPECT_EQ(redraws, row["redraws"].get<int>()) << path;
    }
  }
}

}  // namespace
}  // namespace tessera::data::test
