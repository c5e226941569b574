// Decode, crop parameters and resize against goldens/transforms (format: goldens/README.md). Cases are found by what the
// files hold, not by their names.
#include <random>

#include "common/safetensors.h"
#include "data_loader/decode/decode.h"
#include "data_loader/transform/crop.h"
#include "data_loader/transform/resize.h"
#include "shared_files.h"

namespace tessera::data::test {
namespace {

const fs::path kFolder = goldens_dir() / "transforms";

// JSON files of the folder that have `key`.
std::vector<nlohmann::json> documents_with(const std::string& key) {
  std::vector<nlohmann::json> out;
  for (const fs::path& path : files_like(kFolder, "", ".json")) {
    nlohmann::json document = read_json(path);
    if (document.contains(key)) out.push_back(std::move(document));
  }
  return out;
}

struct Mt19937Words {
  std::mt19937 generator;
  int drawn = 0;
  uint32_t next_u32() { return ++drawn, uint32_t(generator()); }
};

int64_t sum_of(const std::vector<uint8_t>& bytes) {
  int64_t sum = 0;
  for (const uint8_t byte : bytes) sum += byte;
  return sum;
}

TEST(GoldenTransforms, DecodeEqualsPillow) {
  const auto documents = documents_with("images");
  NEED_SHARED(!documents.empty(), kFolder);
  const fs::path photos = sample_dir() / "photos";
  NEED_SHARED(fs::exists(photos), photos);
  int compared = 0;
  for (const auto& document : documents)
    for (const auto& row : document["images"]) {
      const std::string name = row["file"];
      const auto bytes = read_file(photos / name);
      ASSERT_FALSE(bytes.empty()) << name;
      const auto size = image_size(bytes);
      ASSERT_TRUE(size) << name << ": " << size.error().message;
      EXPECT_EQ(size->width, row["W"].get<int>());
      EXPECT_EQ(size->height, row["H"].get<int>());
      const auto image = decode(bytes);
      ASSERT_TRUE(image) << name << ": " << image.error().message;
      EXPECT_EQ(sum_of(image->rgb), row["sum"].get<int64_t>()) << name;
      EXPECT_EQ(sha256(image->rgb), row["sha256_rgb_hwc"].get<std::string>()) << name;
      ++compared;
    }
  EXPECT_GT(compared, 0);
}

TEST(GoldenTransforms, CropParametersEqualTorchvision) {
  const auto documents = documents_with("cases");
  NEED_SHARED(!documents.empty(), kFolder);
  for (const auto& document : documents)
    for (const auto& c : document["cases"]) {
      Mt19937Words words{std::mt19937(c["seed"].get<uint32_t>())};
      const Pair scale{c["scale"][0], c["scale"][1]}, ratio{c["ratio"][0], c["ratio"][1]};
      const proto::CropBox box = draw_crop(c["W"].get<int>(), c["H"].get<int>(), scale, ratio, words);
      ASSERT_EQ(box.top, c["i"].get<int>()) << c.dump();
      ASSERT_EQ(box.left, c["j"].get<int>()) << c.dump();
      ASSERT_EQ(box.height, c["h"].get<int>()) << c.dump();
      ASSERT_EQ(box.width, c["w"].get<int>()) << c.dump();
      ASSERT_EQ(words.drawn, c["draws_consumed"].get<int>()) << c.dump();
    }
}

std::vector<uint8_t> resized(const std::vector<uint8_t>& bytes, const proto::CropBox& box, int size, ResizeCode code) {
  std::vector<uint8_t> out(size_t(size) * size_t(size) * 3);
  WindowImage window;
  ResizeScratch scratch;
  const Status status = decode_window(bytes, {box.top, box.left, box.height, box.width}, window);
  EXPECT_TRUE(status) << status.error().message;
  if (!status) return {};
  crop_resize_rgbx(window.pixel(box.top, box.left), window.row_bytes, box, size, Filter::kBilinear, out.data(), scratch, code);
  return out;
}

TEST(GoldenTransforms, CropAndResizeEqualPillow) {
  const auto documents = documents_with("rows");
  NEED_SHARED(!documents.empty(), kFolder);
  const fs::path photos = sample_dir() / "photos";
  NEED_SHARED(fs::exists(photos), photos);
  ResizeScratch scratch;
  for (const auto& document : documents)
    for (const auto& row : document["rows"]) {
      const auto bytes = read_file(photos / row["file"].get<std::string>());
      const proto::CropBox box{row["i"], row["j"], row["h"], row["w"], false};
      const int size = row["size"];
      const std::string expected = row["sha256_hwc"];
      const auto image = decode(bytes);
      ASSERT_TRUE(image) << row.dump();
      std::vector<uint8_t> out(size_t(size) * size_t(size) * 3);
      crop_resize(image->rgb.data(), int64_t{image->width} * 3, box, size, Filter::kBilinear, out.data(), scratch);
      EXPECT_EQ(sum_of(out), row["sum"].get<int64_t>()) << row.dump();
      EXPECT_EQ(sha256(out), expected) << "from a whole decode: " << row.dump();
      EXPECT_EQ(sha256(resized(bytes, box, size, ResizeCode::kScalar)), expected) << "window, scalar: " << row.dump();
      EXPECT_EQ(sha256(resized(bytes, box, size, ResizeCode::kBest)), expected) << "window, vector: " << row.dump();
    }
}

// caseN.sizeS of any safetensors file against row (case N, size S): shows where a difference lies.
TEST(GoldenTransforms, StoredPixels) {
  const auto documents = documents_with("rows");
  const auto files = files_like(kFolder, "", ".safetensors");
  NEED_SHARED(!documents.empty() && !files.empty(), kFolder);
  const fs::path photos = sample_dir() / "photos";
  NEED_SHARED(fs::exists(photos), photos);
  int compared = 0;
  for (const fs::path& path : files) {
    const auto file = SafetensorsFile::open(path);
    ASSERT_TRUE(file) << file.error().message;
    for (const auto& row : documents[0]["rows"]) {
      const TensorView* stored = file->find("case" + std::to_string(row["case"].get<int>()) + ".size" + std::to_string(row["size"].get<int>()));
      if (!stored) continue;
      const auto out = resized(read_file(photos / row["file"].get<std::string>()), {row["i"], row["j"], row["h"], row["w"], false}, row["size"], ResizeCode::kBest);
      ASSERT_EQ(int64_t(out.size()), stored->size_bytes);
      const auto* expected = static_cast<const uint8_t*>(stored->data);
      for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], expected[i]) << stored->name << " byte " << i;
      ++compared;
    }
  }
  EXPECT_GT(compared, 0);
}

}  // namespace
}  // namespace tessera::data::test
