#include "data_loader/decode/decode.h"

#include <algorithm>
#include <cstring>

#include "pillow_vectors.h"
#include "shared_files.h"
#include "test_images.h"

namespace tessera::data::test {
namespace {

std::vector<uint8_t> from_hex(const char* hex) {
  std::vector<uint8_t> out;
  for (; *hex; hex += 2) out.push_back(uint8_t(std::stoi(std::string(hex, 2), nullptr, 16)));
  return out;
}

// The window's pixels against those of the whole image.
void expect_window_equal(const std::vector<uint8_t>& bytes, const Image& whole, const PixelWindow& w, WindowImage& scratch, const std::string& what) {
  const Status status = decode_window(bytes, w, scratch);
  ASSERT_TRUE(status) << what << ": " << status.error().message;
  ASSERT_EQ(scratch.full, (ImageSize{whole.width, whole.height})) << what;
  for (int y = w.top; y < w.top + w.height; ++y)
    for (int x = w.left; x < w.left + w.width; ++x)
      ASSERT_EQ(std::memcmp(scratch.pixel(y, x), whole.rgb.data() + (int64_t{y} * whole.width + x) * 3, 3), 0)
          << what << ": window " << w.height << "x" << w.width << " at (" << w.top << ", " << w.left << "), pixel (" << y << ", " << x << ")";
}

TEST(Decode, EqualsPillow) {
  WindowImage window;
  for (const PillowVector& v : kPillowVectors) {
    const auto bytes = from_hex(v.file_hex);
    const auto size = image_size(bytes);
    ASSERT_TRUE(size) << v.name << ": " << size.error().message;
    EXPECT_EQ(*size, (ImageSize{v.width, v.height})) << v.name;
    const auto image = decode(bytes);
    ASSERT_TRUE(image) << v.name << ": " << image.error().message;
    EXPECT_EQ(sha256(image->rgb), v.rgb_sha256) << v.name;
    expect_window_equal(bytes, *image, {0, 0, v.height, v.width}, window, v.name);
    expect_window_equal(bytes, *image, {2, 3, 4, 5}, window, v.name);
  }
}

TEST(Decode, RowsFromTheTopEqualTheWhole) {
  const auto jpeg = make_jpeg(75, 61, {}, 3), png = make_png(75, 61, true, 4);
  for (const auto& bytes : {jpeg, png}) {
    const auto whole = decode(bytes);
    ASSERT_TRUE(whole);
    EXPECT_EQ(whole->rows, 61);
    for (const int bottom : {1, 7, 16, 33, 60, 61, 100}) {
      const auto part = decode(bytes, bottom);
      ASSERT_TRUE(part);
      ASSERT_EQ(part->rows, std::min(bottom, 61));
      EXPECT_TRUE(std::equal(part->rgb.begin(), part->rgb.end(), whole->rgb.begin()));
    }
  }
}

// Every sampling that libjpeg's partial decoding is used for, and some that it is not: any window equals the whole.
TEST(Decode, AnyWindowEqualsTheWhole) {
  std::mt19937 random(5);
  WindowImage scratch;
  const std::pair<int, int> samplings[] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {4, 2}};
  for (const auto& [h, v] : samplings)
    for (int variant = 0; variant < 10; ++variant) {
      const JpegForm form{variant % 5 == 4 ? 1 : variant % 5 == 3 ? 4 : 3, h, v, 60 + variant * 4, variant == 2, variant == 1 ? 3 : 0};
      const int width = int(random() % 120) + 1, height = int(random() % 120) + 1;
      const auto bytes = make_jpeg(width, height, form, random());
      const auto whole = decode(bytes);
      ASSERT_TRUE(whole) << whole.error().message;
      const std::string what = std::to_string(h) + "x" + std::to_string(v) + " variant " + std::to_string(variant) + ", " + std::to_string(width) + "x" + std::to_string(height);
      for (int i = 0; i < 40; ++i) {
        PixelWindow w;
        w.height = int(random() % uint32_t(height)) + 1, w.width = int(random() % uint32_t(width)) + 1;
        if (i % 4 == 0) w.height = std::min(w.height, 3), w.width = std::min(w.width, 3);
        w.top = int(random() % uint32_t(height - w.height + 1)), w.left = int(random() % uint32_t(width - w.width + 1));
        expect_window_equal(bytes, *whole, w, scratch, what);
        if (HasFatalFailure()) return;
      }
    }
}

TEST(Decode, PhotosByWindow) {
  const fs::path folder = sample_dir() / "photos";
  const auto photos = files_like(folder, "", ".JPEG");
  NEED_SHARED(!photos.empty(), folder);
  std::mt19937 random(6);
  WindowImage scratch;
  for (size_t i = 0; i < photos.size(); i += 5) {
    const auto bytes = read_file(photos[i]);
    const auto whole = decode(bytes);
    ASSERT_TRUE(whole) << photos[i];
    for (int n = 0; n < 2; ++n) {
      PixelWindow w;
      w.height = whole->height / 3 + int(random() % uint32_t(whole->height / 2)), w.width = whole->width / 3 + int(random() % uint32_t(whole->width / 2));
      w.top = int(random() % uint32_t(whole->height - w.height + 1)), w.left = int(random() % uint32_t(whole->width - w.width + 1));
      expect_window_equal(bytes, *whole, w, scratch, photos[i].filename());
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Decode, OnlyNeededColumnsAreDecoded) {
  const auto bytes = make_jpeg(512, 512, {}, 9);
  WindowImage window;
  ASSERT_TRUE(decode_window(bytes, {200, 200, 100, 100}, window));
  EXPECT_LT(window.decoded.width, 160);
  EXPECT_EQ(window.decoded.top, 199);
}

std::string error_of(const std::vector<uint8_t>& bytes, const DecodeLimits& limits = {}) {
  const auto image = decode(bytes, 0, limits);
  if (image) return "";
  EXPECT_EQ(image.error().code, ErrorCode::kFixData);
  return image.error().message;
}

TEST(Decode, CutFilesAreErrors) {
  for (const auto& whole : {make_jpeg(64, 64, {}, 1), make_jpeg(64, 64, {3, 2, 2, 85, true, 0}, 1), make_png(64, 64, false, 1)}) {
    ASSERT_EQ(error_of(whole), "");
    for (const double part : {0.0, 0.001, 0.1, 0.5, 0.9}) {
      const std::vector<uint8_t> cut(whole.begin(), whole.begin() + std::ptrdiff_t(double(whole.size()) * part));
      EXPECT_NE(error_of(cut), "") << part;
    }
  }
}

TEST(Decode, BadBytesNameTheReason) {
  EXPECT_EQ(error_of({}), "the file is empty");
  EXPECT_NE(error_of({'G', 'I', 'F', '8', '9', 'a'}).find("neither JPEG nor PNG"), std::string::npos);
  auto png = make_png(32, 32, false, 2);
  png[png.size() - 30] ^= 0x40;  // inside the last IDAT
  EXPECT_TRUE(error_of(png).starts_with("PNG: ")) << error_of(png);
  auto jpeg = make_jpeg(64, 64, {}, 2);
  std::fill(jpeg.begin() + std::ptrdiff_t(jpeg.size() / 2), jpeg.begin() + std::ptrdiff_t(jpeg.size() / 2 + 40), uint8_t{0xFF});
  EXPECT_NE(error_of(jpeg), "");
}

TEST(Decode, Limits) {
  const auto jpeg = make_jpeg(64, 64, {3, 2, 2, 85, true, 0}, 1);
  EXPECT_NE(error_of(jpeg, {.max_pixels = 4095}).find("exceed the limit of 4095"), std::string::npos);
  EXPECT_NE(error_of(jpeg, {.max_scans = 2}).find("more than 2 scans"), std::string::npos) << error_of(jpeg, {.max_scans = 2});
  EXPECT_NE(error_of(jpeg, {.max_bytes = 100}).find("exceed the limit of 100"), std::string::npos);
  // A header that claims 65,000 x 2,000 pixels in a few hundred bytes is refused before any memory is taken.
  auto bomb = make_jpeg(8, 8, {1, 1, 1, 85, false, 0}, 1);
  for (size_t i = 0; i + 8 < bomb.size(); ++i)
    if (bomb[i] == 0xFF && bomb[i + 1] == 0xC0) bomb[i + 5] = 2000 >> 8, bomb[i + 6] = 2000 & 255, bomb[i + 7] = 65000 >> 8, bomb[i + 8] = uint8_t(65000 & 255);
  EXPECT_NE(error_of(bomb).find("cannot be in a file of"), std::string::npos) << error_of(bomb);
}

TEST(Decode, WindowOutsideIsOurBug) {
  const auto bytes = make_jpeg(32, 24, {}, 1);
  WindowImage out;
  for (const PixelWindow& w : {PixelWindow{0, 0, 25, 1}, PixelWindow{0, 20, 1, 13}, PixelWindow{-1, 0, 2, 2}, PixelWindow{0, 0, 0, 4}}) {
    const Status status = decode_window(bytes, w, out);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kInternal);
  }
}

TEST(Decode, FingerprintNamesLibrariesAndPixels) {
  const std::string text = decoder_fingerprint();
  EXPECT_NE(text.find("libjpeg"), std::string::npos) << text;
  EXPECT_NE(text.find("libpng"), std::string::npos) << text;
  EXPECT_EQ(text, decoder_fingerprint());
}

}  // namespace
}  // namespace tessera::data::test
