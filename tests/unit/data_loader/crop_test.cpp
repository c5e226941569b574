#include "data_loader/transform/crop.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "data_loader/transform/sample_transform.h"
#include "shared_files.h"
#include "test_images.h"

namespace tessera::data::test {
namespace {

struct Words {
  std::mt19937 generator;
  uint32_t next_u32() { return uint32_t(generator()); }
};

TEST(Crop, InsideTheImageForAnySize) {
  std::mt19937 random(1);
  for (int n = 0; n < 20000; ++n) {
    Words words{std::mt19937(uint32_t(n))};
    const int width = n % 3 ? int(random() % 600) + 1 : int(random() % 4) + 1, height = n % 5 ? int(random() % 600) + 1 : int(random() % 4) + 1;
    const Pair scale{0.05 + (n % 10) * 0.09, 1.0}, ratio{n % 2 ? 0.75 : 0.2, n % 2 ? 4.0 / 3.0 : 5.0};
    const proto::CropBox box = draw_crop(width, height, scale, ratio, words);
    ASSERT_GE(box.top, 0) << n;
    ASSERT_GE(box.left, 0) << n;
    ASSERT_GE(box.height, 1) << n;
    ASSERT_GE(box.width, 1) << n;
    ASSERT_LE(box.top + box.height, height) << n;
    ASSERT_LE(box.left + box.width, width) << n;
  }
}

TEST(Crop, ShareOfAreaAndRatioAreAsAsked) {
  double area = 0, log_ratio = 0;
  const int draws = 20000;
  for (int n = 0; n < draws; ++n) {
    Words words{std::mt19937(uint32_t(n) + 5)};
    const proto::CropBox box = draw_crop(1000, 1000, {0.1, 0.4}, {0.75, 4.0 / 3.0}, words);
    const double share = double(box.height) * box.width / 1e6;
    ASSERT_GT(share, 0.098);
    ASSERT_LT(share, 0.402);
    area += share, log_ratio += std::log(double(box.width) / box.height);
  }
  EXPECT_NEAR(area / draws, 0.25, 0.003);
  EXPECT_NEAR(log_ratio / draws, 0.0, 0.006);
}

FunctionConfig small_config() {
  FunctionConfig f;
  f.model.image_size = 48, f.model.patch_size = 8;
  f.data.horizontal_flip = true;
  return f;
}

TEST(Crop, DependsOnSeedEpochAndSample) {
  FunctionConfig f = small_config();
  const ImageSize image{400, 300};
  const auto key = [&](int64_t epoch, SampleId sample) {
    const proto::CropBox b = crop_of(f, epoch, sample, image);
    return std::array<int, 5>{b.top, b.left, b.height, b.width, b.flip};
  };
  EXPECT_EQ(key(3, 7), key(3, 7));
  EXPECT_NE(key(3, 7), key(4, 7));
  EXPECT_NE(key(3, 7), key(3, 8));
  EXPECT_NE(key(3, 7), key(3, 7 + (int64_t{1} << 32)));
  int flips = 0;
  for (int i = 0; i < 2000; ++i) flips += key(0, i)[4];
  EXPECT_NEAR(flips, 1000, 120);
  const auto before = key(3, 7);
  f.seed = 1;
  EXPECT_NE(key(3, 7), before);
}

// The whole path equals its parts: whole decode, crop, scalar resize, flip; whatever was in the memory before.
TEST(SampleTransform, EqualsItsParts) {
  const FunctionConfig f = small_config();
  auto transform = SampleTransform::create(f);
  ASSERT_TRUE(transform);
  ResizeScratch scratch;
  for (int n = 0; n < 60; ++n) {
    const int width = 20 + n * 7 % 190, height = 25 + n * 11 % 170;
    const auto bytes = n % 4 == 3 ? make_png(width, height, n % 8 == 7, uint32_t(n)) : make_jpeg(width, height, {3, 1 + n % 2, 1 + n / 2 % 2, 80, n % 5 == 0, 0}, uint32_t(n));
    std::vector<uint8_t> ours(48 * 48 * 3 + 1, 0xAB), parts(48 * 48 * 3);
    const auto box = transform->training_crop(bytes, 2, n, ours.data());
    ASSERT_TRUE(box) << box.error().message;
    EXPECT_EQ(ours.back(), 0xAB);
    ours.pop_back();
    const auto image = decode(bytes);
    ASSERT_TRUE(image);
    const proto::CropBox same = crop_of(f, 2, n, {image->width, image->height});
    EXPECT_EQ(box->flip, same.flip);
    crop_resize(image->rgb.data(), int64_t{image->width} * 3, same, 48, Filter::kBilinear, parts.data(), scratch);
    ASSERT_EQ(ours, parts) << "sample " << n;
    ASSERT_TRUE(transform->whole_image(bytes, 33, ours.data()));
    crop_resize(image->rgb.data(), int64_t{image->width} * 3, {0, 0, image->height, image->width, false}, 33, Filter::kBilinear, parts.data(), scratch);
    ASSERT_EQ(std::memcmp(ours.data(), parts.data(), 33 * 33 * 3), 0) << "sample " << n;
  }
  EXPECT_GT(transform->decode_seconds() + transform->resize_seconds(), 0);
}

TEST(SampleTransform, UndecodableIsAnErrorAndGreyIsGrey) {
  auto transform = SampleTransform::create(small_config());
  ASSERT_TRUE(transform);
  std::vector<uint8_t> out(48 * 48 * 3);
  const auto box = transform->training_crop(std::vector<uint8_t>{1, 2, 3}, 0, 0, out.data());
  ASSERT_FALSE(box);
  EXPECT_EQ(box.error().code, ErrorCode::kFixData);
  EXPECT_EQ(transform->fill_grey(out.data()).height, 0);
  EXPECT_EQ(out, std::vector<uint8_t>(48 * 48 * 3, 128));
  FunctionConfig f = small_config();
  f.data.interpolation = "nearest";
  const auto wrong = SampleTransform::create(f);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, ErrorCode::kFixConfig);
}

}  // namespace
}  // namespace tessera::data::test
