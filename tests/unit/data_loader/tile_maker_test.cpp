// Tiles as a pure function of (function, dataset, step, tile).
#include "data_loader/server/tile_maker.h"

#include <set>

#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

FunctionConfig small_function() {
  FunctionConfig out;
  out.model.name = "vit_tiny", out.model.patch_size = 8, out.model.image_size = 32;
  out.masks.min_keep = 0;
  out.batch.tile_size = 4, out.batch.tiles = 2;
  out.seed = 7;
  return out;
}

// 24 scenes in a tar.
class TileMakerTest : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<std::pair<std::string, std::string>> members;
    for (size_t i = 0; i < 24; ++i) {
      members.push_back({std::to_string(100 + i) + ".jpg", test_jpegs()[i]});
      members.push_back({std::to_string(100 + i) + ".cls", std::to_string(i % 6)});
    }
    write_test_file(folder_ / "d/s.tar", tar_of(members));
    open();
  }
  void open() {
    OpenOptions options;
    options.data_path = folder_ / "d";
    auto dataset = open_dataset(options);
    ASSERT_TRUE(dataset) << dataset.error().message;
    dataset_ = *dataset;
  }
  TileMaker maker(const FunctionConfig& function) { return std::move(*TileMaker::create(dataset_, function)); }

  TemporaryFolder folder_;
  std::shared_ptr<const Dataset> dataset_;
};

TEST_F(TileMakerTest, HeaderFitsThePixelsAndTheConfig) {
  const FunctionConfig function = small_function();
  const auto tile = maker(function).make(5, 1);
  ASSERT_TRUE(tile) << tile.error().message;
  const proto::TileHeader& header = tile->header;
  EXPECT_EQ(header.step, 5);
  EXPECT_EQ(header.tile, 1);
  EXPECT_EQ(header.epoch, 1) << "24 samples are 3 steps of 8";
  EXPECT_EQ(header.grid, 4);
  EXPECT_EQ(header.sample_ids.size(), 4u);
  EXPECT_EQ(header.pixel_bytes, 4 * 32 * 32 * 3);
  EXPECT_EQ(int64_t(tile->pixels->size()), header.pixel_bytes);
  EXPECT_EQ(header.frame_count, 1);
  EXPECT_EQ(header.pixel_hash, hash_bytes(tile->pixels->data(), tile->pixels->size()));
  EXPECT_EQ(header.digest, proto::tile_digest(header));
  ASSERT_EQ(header.contexts.size(), 1u);
  ASSERT_EQ(header.targets.size(), 4u);
  EXPECT_EQ(header.contexts[0].size(), size_t(4 * header.context_length));
  EXPECT_EQ(header.targets[3].size(), size_t(4 * header.target_length));
  for (const proto::CropBox& crop : header.crops) EXPECT_LE(crop.top + crop.height, 32);
}

TEST_F(TileMakerTest, AnEpochCoversEachSampleOnce) {
  TileMaker maker = this->maker(small_function());
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<SampleId> seen;
    for (Step step = epoch * 3; step < epoch * 3 + 3; ++step)
      for (TileIndex tile = 0; tile < 2; ++tile) {
        const auto made = maker.make(step, tile);
        ASSERT_TRUE(made) << made.error().message;
        for (const SampleId id : made->header.sample_ids) EXPECT_TRUE(seen.insert(id).second);
      }
    EXPECT_EQ(seen.size(), 24u);
  }
}

TEST_F(TileMakerTest, WhatWasMadeBeforeChangesNothing) {
  const FunctionConfig function = small_function();
  TileMaker used = maker(function);
  for (Step step : {9, 2, 4}) ASSERT_TRUE(used.make(step, 0));
  EXPECT_EQ(used.make(5, 1)->header.digest, maker(function).make(5, 1)->header.digest);
  FunctionConfig other = function;
  other.seed = 8;
  EXPECT_NE(maker(other).make(5, 1)->header.digest, maker(function).make(5, 1)->header.digest);
}

// Two tiles that share a mask group have the lengths and masks of the group's images.
TEST_F(TileMakerTest, TilesOfAGroupShareItsMasks) {
  FunctionConfig function = small_function();
  function.batch.tiles_per_mask_group = 2;
  TileMaker maker = this->maker(function);
  const auto first = maker.make(3, 0), second = maker.make(3, 1);
  ASSERT_TRUE(first) << first.error().message;
  ASSERT_TRUE(second);
  EXPECT_EQ(first->header.context_length, second->header.context_length);
  EXPECT_EQ(first->header.target_length, second->header.target_length);
  const auto group = draw_group_masks(function, 3, 0);
  for (int i = 0; i < 8; ++i) {
    const auto& header = i < 4 ? first->header : second->header;
    const auto begin = header.contexts[0].begin() + (i % 4) * header.context_length;
    EXPECT_EQ(PatchList(begin, begin + header.context_length), group->contexts[0][size_t(i)]) << i;
  }
}

TEST_F(TileMakerTest, UndecodableImagesFollowThePolicy) {
  write_test_file(folder_ / "d/t.tar", tar_of({{"bad.jpg", test_jpegs()[0].substr(0, 300)}}));
  open();
  FunctionConfig function = small_function();
  function.batch.tile_size = 25, function.batch.tiles = 1;
  const auto refused = maker(function).make(0, 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(exit_code_of(refused.error()), exit_codes::kDataCorrupt);
  for (const char* word : {"t.tar", "'bad'", "byte 512", "undecodable: grey"}) EXPECT_NE(refused.error().message.find(word), std::string::npos) << refused.error().message;
  function.data.undecodable = "grey";
  const auto grey = maker(function).make(0, 0);
  ASSERT_TRUE(grey) << grey.error().message;
  EXPECT_EQ(grey->header.grey_samples, std::vector<SampleId>{24});
  const auto at = std::find(grey->header.sample_ids.begin(), grey->header.sample_ids.end(), 24) - grey->header.sample_ids.begin();
  for (int64_t byte = 0; byte < 32 * 32 * 3; ++byte) ASSERT_EQ((*grey->pixels)[size_t(at * 32 * 32 * 3 + byte)], 128);
}

TEST_F(TileMakerTest, WholeImagesWithLabels) {
  TileMaker maker = this->maker(small_function());
  const auto samples = maker.samples({3, 0}, 32);
  ASSERT_TRUE(samples) << samples.error().message;
  EXPECT_EQ(samples->tile.keys, (std::vector<std::string>{"103", "100"}));
  EXPECT_EQ(samples->tile.label_names, std::vector<std::string>{"class"});
  EXPECT_EQ(samples->tile.labels, (std::vector<double>{3, 0}));
  const auto image = decode({reinterpret_cast<const uint8_t*>(test_jpegs()[3].data()), test_jpegs()[3].size()});
  EXPECT_TRUE(std::equal(image->rgb.begin(), image->rgb.end(), samples->pixels->begin())) << "32 pixels to 32 pixels is the image itself";
}

TEST_F(TileMakerTest, RefusesWhatIsNotThere) {
  TileMaker maker = this->maker(small_function());
  EXPECT_FALSE(maker.make(0, 2));
  EXPECT_FALSE(maker.make(-1, 0));
  EXPECT_FALSE(maker.samples({24}, 32));
  EXPECT_FALSE(maker.samples({}, 32));
  EXPECT_FALSE(maker.samples(std::vector<SampleId>(2000, 0), 64));
  FunctionConfig large = small_function();
  large.batch.tile_size = 20;
  const auto refused = this->maker(large).make(0, 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(exit_code_of(refused.error()), exit_codes::kConfig);
}

}  // namespace
}  // namespace tessera::data
