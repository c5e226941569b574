// Our entropy decoder and packed JPEGs against libjpeg-turbo alone: the same pixels, the same verdicts, the same files.
#include <cstring>

#include "data_loader/decode/codecs.h"
#include "data_loader/decode/jpeg_handle.h"
#include "data_loader/decode/packed_jpeg.h"
#include "shared_files.h"
#include "test_images.h"

namespace tessera::data::test {
namespace {

using Bytes = std::vector<uint8_t>;

struct Made {
  int width, height;
  JpegForm form;
};
// Every layout that our decoder takes, odd sizes, restart intervals, qualities with few and with long codes.
std::vector<Made> usual_forms() {
  std::vector<Made> out;
  for (const auto& [h, v] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}})
    for (const int quality : {20, 85, 100})
      for (const int restart : {0, 1, 7}) out.push_back({61 + 13 * h, 47 + 11 * v, {3, h, v, quality, false, restart}});
  for (const int quality : {30, 95}) out.push_back({50, 33, {1, 1, 1, quality, false, quality == 30 ? 3 : 0}});
  out.push_back({1, 1, {3, 2, 2, 90, false, 0}});
  out.push_back({17, 300, {3, 2, 2, 90, false, 0}});
  out.push_back({900, 9, {3, 2, 1, 98, false, 0}});
  return out;
}

PixelWindow random_window(int width, int height, std::mt19937& random) {
  PixelWindow w;
  w.width = 1 + int(random() % unsigned(width)), w.height = 1 + int(random() % unsigned(height));
  w.left = int(random() % unsigned(width - w.width + 1)), w.top = int(random() % unsigned(height - w.height + 1));
  return w;
}

void expect_same_window(const WindowImage& a, const WindowImage& b) {
  ASSERT_EQ(a.decoded, b.decoded);
  for (int y = 0; y < a.decoded.height; ++y)
    ASSERT_EQ(std::memcmp(a.pixel(a.decoded.top + y, a.decoded.left), b.pixel(b.decoded.top + y, b.decoded.left), size_t(a.decoded.width) * 4), 0) << "row " << y;
}

TEST(FastJpeg, WindowsEqualTheLibrarys) {
  std::mt19937 random(11);
  WindowImage library, own;
  for (const Made& made : usual_forms()) {
    const Bytes jpeg = make_jpeg(made.width, made.height, made.form, random());
    for (int n = 0; n < 12; ++n) {
      const PixelWindow w = n == 0 ? PixelWindow{0, 0, made.height, made.width} : random_window(made.width, made.height, random);
      ASSERT_TRUE(jpeg_decode_window(jpeg, w, library, {}, EntropyCode::kLibrary));
      const int64_t before = own_entropy_windows();
      ASSERT_TRUE(jpeg_decode_window(jpeg, w, own, {}, EntropyCode::kBest));
      EXPECT_EQ(own_entropy_windows(), before + 1) << "our decoder was not used";
      expect_same_window(library, own);
    }
  }
}

TEST(FastJpeg, OthersAreLeftToTheLibrary) {
  WindowImage out;
  for (const JpegForm& form : {JpegForm{3, 2, 2, 80, true, 0}, JpegForm{4, 1, 1, 80, false, 0}, JpegForm{3, 4, 1, 80, false, 0}}) {
    const Bytes jpeg = make_jpeg(64, 40, form, 3);
    const int64_t before = own_entropy_windows();
    ASSERT_TRUE(jpeg_decode_window(jpeg, {3, 4, 20, 30}, out, {}));
    EXPECT_EQ(own_entropy_windows(), before);
    EXPECT_FALSE(pack_jpeg(jpeg));
  }
}

// Cut at any byte and with any single byte of the scan changed: error or not, and pixels, as with the library alone.
TEST(FastJpeg, DamageHasTheLibrarysVerdict) {
  WindowImage library, own;
  for (const int restart : {0, 2}) {
    const Bytes good = make_jpeg(40, 40, {3, 2, 2, 75, false, restart}, 5);
    int errors = 0, images = 0;
    for (size_t at = 0; at < 2 * good.size(); ++at) {
      Bytes bad = good;
      if (at < good.size()) bad.resize(at);
      else bad[at - good.size()] ^= uint8_t(1 + at * 37 % 255);
      const PixelWindow w{at % 3 ? 0 : 9, 3, 24, 33};
      const Status a = jpeg_decode_window(bad, w, library, {}, EntropyCode::kLibrary), b = jpeg_decode_window(bad, w, own, {}, EntropyCode::kBest);
      ASSERT_EQ(a.has_value(), b.has_value()) << "at " << at;
      ++(a ? images : errors);
      if (a) expect_same_window(library, own);
      else EXPECT_EQ(a.error().message, b.error().message);
    }
    EXPECT_GT(errors, 100);
    EXPECT_GT(images, 100);
  }
}

TEST(PackedJpeg, OriginalAndPixelsComeBack) {
  std::mt19937 random(12);
  WindowImage plain, packed_out;
  for (const Made& made : usual_forms()) {
    const Bytes jpeg = make_jpeg(made.width, made.height, made.form, random());
    const auto made_packed = pack_jpeg(jpeg);
    ASSERT_TRUE(made_packed);
    const Bytes packed(made_packed->begin(), made_packed->end());
    const auto again = unpack_jpeg(packed);
    ASSERT_TRUE(again) << again.error().message;
    ASSERT_TRUE(Bytes(again->begin(), again->end()) == jpeg);
    EXPECT_EQ(*image_size(packed), (ImageSize{made.width, made.height}));
    ASSERT_TRUE(decode(packed)->rgb == decode(jpeg)->rgb);
    for (int n = 0; n < 8; ++n) {
      const PixelWindow w = random_window(made.width, made.height, random);
      ASSERT_TRUE(jpeg_decode_window(jpeg, w, plain, {}, EntropyCode::kLibrary));
      for (const EntropyCode code : {EntropyCode::kBest, EntropyCode::kLibrary}) {
        ASSERT_TRUE(packed_decode_window(packed, w, packed_out, {}, code));
        expect_same_window(plain, packed_out);
      }
    }
  }
}

// The example of docs/repacked-shards.md, and its wide sister.
TEST(PackedJpeg, DocumentedExample) {
  ScanLayout layout;
  layout.blocks = 1, layout.mcus_per_row = 3, layout.mcu_rows = 1;
  const Bytes coefficients{0x00, 50, 0x03, 0xFD, 0x02, 0x05, 0xFD, 0x05, 0x01, 0x03, 0xFD, 0x03, 0x05, 0xFD, 0x80, 0x01, 0x2C, 0x01};
  const Bytes row_starts{0, 0, 0, 0, uint8_t(coefficients.size()), 0, 0, 0};
  PackedJpeg packed;
  packed.coefficients = coefficients, packed.row_starts = row_starts, packed.mcu_rows = 1;
  for (const PackedCode code : {PackedCode::kScalar, PackedCode::kAvx2, PackedCode::kAvx512}) {
    if (!packed_code_available(code)) continue;
    PackedScan scan;
    ASSERT_TRUE(scan.start(layout, packed, code));
    scan.go_to_row(0);
    for (const auto& [dc, third] : {std::pair{50, 0}, {47, 5}, {44, 300}}) {
      int16_t got[64] = {}, want[64] = {};
      int16_t* blocks[1] = {got};
      ASSERT_TRUE(scan.next(blocks));
      want[0] = int16_t(dc), want[8] = int16_t(third);
      if (third) want[1] = -3, want[10] = 1;
      EXPECT_EQ(std::memcmp(got, want, sizeof got), 0) << dc;
    }
    EXPECT_FALSE(scan.next(nullptr)) << "there is no fourth block";
  }
}

// What follows the image, and fill bits that we would not write.
TEST(PackedJpeg, OddFilesAreKeptExactOrNotPacked) {
  Bytes jpeg = make_jpeg(40, 30, {3, 2, 2, 80, false, 0}, 5);
  for (const uint8_t byte : {0xFF, 0x00, 0x41}) jpeg.push_back(byte);
  const auto packed = pack_jpeg(jpeg);
  ASSERT_TRUE(packed);
  const auto again = unpack_jpeg({reinterpret_cast<const uint8_t*>(packed->data()), packed->size()});
  EXPECT_TRUE(Bytes(again->begin(), again->end()) == jpeg);
  int kept = 0;
  for (int seed = 0; seed < 16; ++seed) {  // the scan's last byte ends with ones; where there are any, zeros decode as well
    Bytes filled = make_jpeg(40, 30, {3, 2, 2, 80, false, 0}, 50 + uint32_t(seed));
    filled[filled.size() - 3] &= 0xFE;
    const auto made = pack_jpeg(filled);
    if (made) EXPECT_EQ(*unpack_jpeg({reinterpret_cast<const uint8_t*>(made->data()), made->size()}), std::string(filled.begin(), filled.end()));
    else ++kept;
  }
  EXPECT_GT(kept, 4);
  jpeg.resize(jpeg.size() / 2);
  EXPECT_FALSE(pack_jpeg(jpeg)) << "a cut image stays as it is";
}

// Scalar, AVX2 and AVX-512 code give the same coefficients, for good bytes and any others.
TEST(PackedJpeg, AllCodePathsAgree) {
  std::mt19937 random(13);
  for (int n = 0; n < 120; ++n) {
    const Bytes jpeg = make_jpeg(70, 50, {3, 1 + n % 2, 1 + n / 2 % 2, n % 3 ? 97 : 60, false, 0}, random());
    auto text = *pack_jpeg(jpeg);
    Bytes bytes(text.begin(), text.end());
    const size_t coefficients = size_t(parse_packed_jpeg(bytes)->coefficients.data() - bytes.data());
    for (int i = 0; i < n % 40; ++i) bytes[coefficients + random() % (bytes.size() - coefficients)] = uint8_t(random());
    const PackedJpeg packed = *parse_packed_jpeg(bytes);
    Jpeg handle({});
    ASSERT_TRUE(open_jpeg(handle, packed.header, packed.original_bytes, {}) && start_jpeg(handle, JCS_RGB));
    const auto layout = *scan_layout(handle.info);
    for (const PackedCode code : {PackedCode::kAvx2, PackedCode::kAvx512}) {
      if (!packed_code_available(code)) continue;
      PackedScan a, b;
      ASSERT_TRUE(a.start(layout, packed, PackedCode::kScalar) && b.start(layout, packed, code));
      for (int row = 0; row < layout.mcu_rows; ++row) {
        a.go_to_row(row), b.go_to_row(row);
        for (int column = 0; column < layout.mcus_per_row; ++column) {
          int16_t from_a[6][64] = {}, from_b[6][64] = {};
          int16_t *to_a[6], *to_b[6];
          for (int i = 0; i < 6; ++i) to_a[i] = from_a[i], to_b[i] = from_b[i];
          const bool pass = (column + n) % 5 == 0;
          const bool good = a.next(pass ? nullptr : to_a);
          ASSERT_EQ(good, b.next(pass ? nullptr : to_b));
          ASSERT_EQ(std::memcmp(from_a, from_b, sizeof from_a), 0) << "row " << row << ", column " << column << ", case " << n;
          if (!good) break;
        }
      }
    }
  }
}

TEST(PackedJpeg, DamagedFilesGiveErrorsNotCrashes) {
  const auto text = *pack_jpeg(make_jpeg(90, 70, {3, 2, 2, 80, false, 0}, 5));
  const Bytes good(text.begin(), text.end());
  WindowImage out;
  std::mt19937 random(9);
  int errors = 0;
  for (size_t n = 0; n < good.size() + 3000; ++n) {
    Bytes bad = good;
    if (n < good.size()) bad.resize(n);
    else for (unsigned i = 0; i <= random() % 4; ++i) bad[random() % (n % 2 ? bad.size() : 60)] = uint8_t(random());
    const auto size = image_size(bad, {.max_pixels = 1 << 20});
    if (!size) {
      ++errors;
      continue;
    }
    const PixelWindow w{size->height / 3, size->width / 4, std::max(1, size->height / 2), std::max(1, size->width / 2)};
    if (const Status status = decode_window(bad, w, out, {.max_pixels = 1 << 20}); !status) {
      ++errors;
      EXPECT_FALSE(status.error().message.empty());
    }
    (void)unpack_jpeg(bad);
  }
  EXPECT_GT(errors, int(good.size()) - 10);
}

}  // namespace
}  // namespace tessera::data::test
