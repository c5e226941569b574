// A repacked dataset is the same dataset: digest, labels, tiles; and repacking survives interruption and damage.
#include "data_loader/dataset/repack.h"

#include "data_loader/server/tile_maker.h"
#include "data_loader/tool/commands.h"
#include "tests/unit/data_loader/dataset_files.h"
#include "tests/unit/data_loader/test_images.h"

namespace tessera::data {
namespace {

std::string as_text(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

std::shared_ptr<const Dataset> open(const std::string& path, bool again = false) {
  OpenOptions options;
  options.data_path = path, options.index_again = again;
  auto dataset = open_dataset(options);
  EXPECT_TRUE(dataset) << (dataset ? "" : dataset.error().message);
  return dataset ? *dataset : nullptr;
}

// Images of every kind, in classes, one with labels beside it, one cut.
class RepackTest : public testing::Test {
 protected:
  void SetUp() override {
    for (uint32_t i = 0; i < 24; ++i) {
      const test::JpegForm form{i % 5 == 4 ? 1 : 3, int(1 + i % 2), int(1 + i / 2 % 2), 60 + int(i), i % 7 == 6, i % 3 == 2 ? 5 : 0};
      write_test_file(plain() + "/" + (i % 2 ? "cat" : "dog") + "/" + std::to_string(100 + i) + ".jpg", as_text(test::make_jpeg(40 + int(i), 60, form, i)));
    }
    write_test_file(plain() + "/cat/" + std::string(120, 'n') + ".png", as_text(test::make_png(50, 40, true, 3)));
    write_test_file(plain() + "/dog/103.json", R"({"width": 12.625, "class": 1, "good": true})");
    source_ = open(plain());
  }
  std::string plain() { return folder_ / "plain"; }
  std::string packed() { return folder_ / "packed"; }
  Repacked run(int threads = 2) {
    const auto out = repack(source_, {packed(), threads});
    EXPECT_TRUE(out) << (out ? "" : out.error().message);
    return out.value_or(Repacked{});
  }
  TemporaryFolder folder_;
  std::shared_ptr<const Dataset> source_;
};

TEST_F(RepackTest, DigestLabelsAndImagesStay) {
  const Repacked out = run();
  EXPECT_EQ(out.packed, 21) << "all but the PNG and three progressive images";
  EXPECT_EQ(out.kept, 4);
  const auto by_manifest = open(packed());
  EXPECT_EQ(by_manifest->made_because, "") << "the manifest that repack wrote fits";
  const auto indexed = open(packed(), /*again=*/true);
  for (const auto& dataset : {by_manifest, indexed}) {
    const Manifest& manifest = *dataset->manifest;
    EXPECT_EQ(to_hex(manifest.digest()), to_hex(source_->manifest->digest()));
    EXPECT_EQ(manifest.class_names(), source_->manifest->class_names());
    EXPECT_EQ(manifest.packed_count(), 21);
    SampleReader plain(source_), reader(dataset);
    for (SampleId id = 0; id < manifest.sample_count(); ++id) EXPECT_EQ(*original_image(manifest.stored(id), *reader.read(id)), *plain.read(id)) << manifest.key(id);
  }
}

TEST_F(RepackTest, TilesAreTheSame) {
  run();
  FunctionConfig function;
  function.model.name = "vit_tiny", function.model.patch_size = 8, function.model.image_size = 32;
  function.masks.min_keep = 0, function.batch.tile_size = 5, function.batch.tiles = 5;
  for (const char* interpolation : {"bilinear", "bicubic"}) {
    function.data.interpolation = interpolation;
    auto plain = *TileMaker::create(source_, function), repacked = *TileMaker::create(open(packed()), function);
    for (Step step = 0; step < 3; ++step)
      for (TileIndex tile = 0; tile < 5; ++tile) {
        const auto a = plain.make(step, tile), b = repacked.make(step, tile);
        ASSERT_TRUE(a && b) << (a ? "" : a.error().message) << (b ? "" : b.error().message);
        EXPECT_EQ(a->header.digest, b->header.digest);
        EXPECT_EQ(*a->pixels, *b->pixels);
      }
  }
}

TEST_F(RepackTest, ThreadsChangeNoByteAndARepackCanBeRepacked) {
  run(1);
  const std::string one = *read_file(packed() + "/shard-000000.tar");
  std::filesystem::remove_all(packed());
  run(7);
  EXPECT_TRUE(one == *read_file(packed() + "/shard-000000.tar"));
  ASSERT_TRUE(repack(open(packed()), {folder_ / "again", 2}));
  EXPECT_TRUE(one == *read_file(folder_ / "again/shard-000000.tar"));
}

// Tars have a shard each; the second is there in part when the repack is started again.
TEST_F(RepackTest, AnInterruptedRepackGoesOn) {
  for (int shard = 0; shard < 3; ++shard) {
    std::vector<std::pair<std::string, std::string>> members;
    for (int i = 0; i < 4; ++i) {
      const std::string key = std::to_string(shard) + "-" + std::to_string(i);
      members.push_back({key + ".jpg", as_text(test::make_jpeg(40, 30, {}, uint32_t(shard * 9 + i)))});
      members.push_back({key + ".cls", std::to_string(i)});
    }
    write_test_file(folder_ / "tars/s" + std::to_string(shard) + ".tar", tar_of(members));
  }
  source_ = open(folder_ / "tars");
  EXPECT_EQ(run().shards_resumed, 0);
  const std::string work = packed() + ".repacking";
  std::filesystem::rename(packed(), work);
  write_test_file(work + "/.repack-of", to_hex(source_->manifest->digest()));
  const std::string second = *read_file(work + "/shard-000001.tar"), third = *read_file(work + "/shard-000002.tar");
  std::filesystem::remove(work + "/shard-000001.tar");
  write_test_file(work + "/shard-000001.tar.part", second.substr(0, 700));
  std::string damaged = third;
  damaged[1500] = char(damaged[1500] ^ 1);
  write_test_file(work + "/shard-000002.tar", damaged);
  std::filesystem::remove(work + "/.tessera-manifest");
  EXPECT_EQ(run().shards_resumed, 1) << "the first is whole, the second cut, the third damaged";
  EXPECT_TRUE(second == *read_file(packed() + "/shard-000001.tar"));
  EXPECT_TRUE(third == *read_file(packed() + "/shard-000002.tar"));
  EXPECT_FALSE(std::filesystem::exists(work));
  EXPECT_EQ(to_hex(open(packed(), true)->manifest->digest()), to_hex(source_->manifest->digest()));
}

TEST_F(RepackTest, ForeignFoldersAreLeftAlone) {
  write_test_file(packed() + "/mine.txt", "x");
  EXPECT_EQ(exit_code_of(repack(source_, {packed(), 1}).error()), exit_codes::kUsage);
  std::filesystem::remove_all(packed());
  write_test_file(packed() + ".repacking/.repack-of", "another");
  EXPECT_EQ(exit_code_of(repack(source_, {packed(), 1}).error()), exit_codes::kUsage);
}

TEST_F(RepackTest, DamageNamesShardKeyAndByte) {
  run();
  const auto dataset = open(packed());
  const StoredSample stored = dataset->manifest->stored(3);
  std::string shard = *read_file(packed() + "/shard-000000.tar");
  shard[size_t(stored.offset + stored.size - 5)] ^= 4;
  std::ofstream(packed() + "/shard-000000.tar", std::ios::binary) << shard;
  const auto read = SampleReader(dataset).read(3);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::kFixData);
  for (const std::string& word : {std::string("shard-000000.tar"), "key '" + std::string(dataset->manifest->key(3)) + "'", "byte " + std::to_string(stored.offset)})
    EXPECT_NE(read.error().message.find(word), std::string::npos) << read.error().message;
  // Made the dataset's own by indexing again: another dataset, or a refusal; never the same digest.
  OpenOptions options;
  options.data_path = packed(), options.index_again = true;
  const auto again = open_dataset(options);
  if (again) EXPECT_NE(to_hex((*again)->manifest->digest()), to_hex(source_->manifest->digest()));
  else EXPECT_EQ(again.error().code, ErrorCode::kFixData);
}

TEST_F(RepackTest, CommandsKnowIt) {
  OpenOptions options;
  options.data_path = plain();
  const auto made = repack_command(options, packed());
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ((*made)["manifest_digest"], to_hex(source_->manifest->digest()));
  EXPECT_EQ((*made)["packed"], 21);
  EXPECT_GT((*made)["size_ratio"].get<double>(), 1.0);
  options.data_path = packed();
  const auto verified = verify_command(options);
  ASSERT_TRUE(verified);
  EXPECT_TRUE((*verified)["bad"].empty()) << (*verified)["bad"];
  EXPECT_EQ((*inspect_command(options))["packed"], 21);
}

}  // namespace
}  // namespace tessera::data
