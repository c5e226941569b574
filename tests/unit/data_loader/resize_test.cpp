#include "data_loader/transform/resize.h"

#include <cmath>
#include <random>

#include "shared_files.h"
#include "test_images.h"

namespace tessera::data::test {
namespace {

std::vector<uint8_t> widen(const std::vector<uint8_t>& rgb) {
  std::vector<uint8_t> out;
  for (size_t i = 0; i < rgb.size(); i += 3) out.insert(out.end(), {rgb[i], rgb[i + 1], rgb[i + 2], uint8_t(i)});
  out.resize(out.size() + 64, 0x5A);
  return out;
}

// What Pillow 13.0.0 makes of the first ten rows of a ramp 12 wide (value of channel c at (x, y): (x * 21 + y * 13 + c * 70) mod 256) at 5 x 5 and of
// its box (2, 1) .. (9, 8) at 9 x 9, and of 40 rows at 8 x 8, where the vertical pass comes first: SHA-256.
struct Vector {
  Filter filter;
  proto::CropBox box;
  int size;
  const char* sha256;
};
const Vector kVectors[] = {
    {Filter::kBilinear, {0, 0, 10, 12, false}, 5, "a3d5a57eaa4dc2527c94064959ab342b234e854b4fd2164d54edfcde686c57e4"},
    {Filter::kBicubic, {0, 0, 10, 12, false}, 5, "4f6197cfc66c429bdf3a5761bf02dd83deae5161bf337cee0c3e0aa90f5587e4"},
    {Filter::kBilinear, {1, 2, 7, 7, false}, 9, "d6360e30642b1dbdc3e9e37d7a2ea86c2d501380052022c65a8ca09f3159b2c0"},
    {Filter::kBilinear, {0, 0, 40, 12, false}, 8, "bc337d6bbd7bded384995c1726765401be93f2939b806475e02db57a8d008117"},
    {Filter::kBicubic, {0, 0, 40, 12, false}, 8, "ca5fe1fbb679291fca22494985f1e73b0b5c4ebbc39fb54651ed6547726a0e2b"},
    {Filter::kBicubic, {1, 2, 7, 7, false}, 9, "92dda23da06872505872d735621977fdc7fb13e9bc6d5df7c2d7979d9252b5bd"},
};

TEST(Resize, EqualsPillow) {
  std::vector<uint8_t> rgb;
  for (int y = 0; y < 40; ++y)
    for (int x = 0; x < 12; ++x)
      for (int c = 0; c < 3; ++c) rgb.push_back(uint8_t(x * 21 + y * 13 + c * 70));
  const auto rgbx = widen(rgb);
  ResizeScratch scratch;
  for (const Vector& v : kVectors) {
    std::vector<uint8_t> out(size_t(v.size * v.size * 3));
    crop_resize(rgb.data(), 36, v.box, v.size, v.filter, out.data(), scratch);
    EXPECT_EQ(sha256(out), v.sha256);
    crop_resize_rgbx(rgbx.data() + v.box.top * 48 + v.box.left * 4, 48, v.box, v.size, v.filter, out.data(), scratch);
    EXPECT_EQ(sha256(out), v.sha256);
  }
}

// The vector code gives the scalar code's bytes, and writes nothing outside its output.
TEST(Resize, VectorEqualsScalar) {
  if (!resize_code_available(ResizeCode::kAvx2)) GTEST_SKIP() << "this CPU has no AVX2";
  std::mt19937 random(3);
  ResizeScratch a, b;
  for (int n = 0; n < 600; ++n) {
    const int width = 1 + int(random() % (n % 3 ? 90 : 400)), height = 1 + int(random() % (n % 3 ? 90 : 400)), size = 1 + int(random() % (n % 2 ? 40 : 130));
    auto rgb = make_pixels(width, height, 3, random());
    if (n % 4 == 0) for (uint8_t& byte : rgb) byte = byte & 1 ? 255 : 0;  // overshoot of the bicubic filter
    const auto rgbx = widen(rgb);
    const proto::CropBox box{0, 0, height, width, n % 2 == 0};
    const Filter filter = n / 2 % 2 ? Filter::kBicubic : Filter::kBilinear;
    const size_t bytes = size_t(size) * size_t(size) * 3;
    std::vector<uint8_t> scalar(bytes + 64, 0xC3), packed(bytes + 64, 0xC3);
    crop_resize_rgbx(rgbx.data(), int64_t{width} * 4, box, size, filter, scalar.data(), a, ResizeCode::kScalar);
    crop_resize(rgb.data(), int64_t{width} * 3, box, size, filter, packed.data(), a);
    ASSERT_EQ(scalar, packed) << width << "x" << height << " to " << size << ", case " << n;
    for (const ResizeCode code : {ResizeCode::kAvx2, ResizeCode::kAvx512, ResizeCode::kBest}) {
      if (!resize_code_available(code)) continue;
      std::vector<uint8_t> vector(bytes + 64, 0xC3);
      crop_resize_rgbx(rgbx.data(), int64_t{width} * 4, box, size, filter, vector.data(), b, code);
      ASSERT_EQ(scalar, vector) << width << "x" << height << " to " << size << ", code " << int(code) << ", case " << n;  // and nothing after the output
    }
  }
}

TEST(Resize, SameSizeIsACopyAndFlatStaysFlat) {
  ResizeScratch scratch;
  for (const Filter filter : {Filter::kBilinear, Filter::kBicubic}) {
    const auto rgb = make_pixels(37, 37, 3, 8);
    std::vector<uint8_t> out(rgb.size());
    crop_resize(rgb.data(), 37 * 3, {0, 0, 37, 37, false}, 37, filter, out.data(), scratch);
    EXPECT_EQ(out, rgb);
    const std::vector<uint8_t> flat(50 * 61 * 3, 200);
    std::vector<uint8_t> small(24 * 24 * 3);
    crop_resize(flat.data(), 61 * 3, {0, 0, 50, 61, false}, 24, filter, small.data(), scratch);
    EXPECT_EQ(small, std::vector<uint8_t>(24 * 24 * 3, 200));
  }
}

TEST(Resize, NothingOutsideTheBoxIsRead) {
  ResizeScratch scratch;
  auto rgb = make_pixels(60, 50, 3, 8);
  const proto::CropBox box{7, 11, 30, 40, false};
  std::vector<uint8_t> before(20 * 20 * 3), after = before;
  crop_resize(rgb.data(), 60 * 3, box, 20, Filter::kBicubic, before.data(), scratch);
  for (int y = 0; y < 50; ++y)
    for (int x = 0; x < 60; ++x)
      if (y < box.top || y >= box.top + box.height || x < box.left || x >= box.left + box.width)
        for (int c = 0; c < 3; ++c) rgb[size_t(y * 60 + x) * 3 + size_t(c)] ^= 0xFF;
  crop_resize(rgb.data(), 60 * 3, box, 20, Filter::kBicubic, after.data(), scratch);
  EXPECT_EQ(before, after);
}

}  // namespace
}  // namespace tessera::data::test
