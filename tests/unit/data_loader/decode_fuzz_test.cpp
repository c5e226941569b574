// Mutants of good files: an image or an error, never a crash, a hang or gigabytes. TESSERA_FUZZ_MUTANTS raises the count;
// a failure prints seed and number of the mutant. Sanitizer builds make it sharper.
//
// JPEG mutants have the verdict and the pixels of libjpeg-turbo alone; packed JPEGs are mutated too. 900 mutants in CI,
// 30,000 under TESSERA_FULL.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "data_loader/decode/codecs.h"
#include "data_loader/decode/packed_jpeg.h"
#include "shared_files.h"
#include "test_images.h"

namespace tessera::data::test {
namespace {

std::vector<std::vector<uint8_t>> corpus() {
  std::vector<std::vector<uint8_t>> out;
  uint32_t seed = 1;
  for (const bool progressive : {false, true})
    for (const int channels : {1, 3, 4}) out.push_back(make_jpeg(70, 50, {channels, 2, 2, 75, progressive, channels == 3 ? 2 : 0}, ++seed));
  out.push_back(make_jpeg(33, 47, {3, 1, 1, 90, false, 0}, ++seed));
  out.push_back(make_png(41, 37, false, ++seed));
  out.push_back(make_png(41, 37, true, ++seed));
  for (const size_t i : {size_t{1}, size_t{6}}) {
    const auto packed = *pack_jpeg(out[i]);
    out.emplace_back(packed.begin(), packed.end());
  }
  return out;
}

std::vector<uint8_t> mutate(std::vector<uint8_t> bytes, std::mt19937& random) {
  const int changes = 1 + int(random() % 6);
  for (int i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t at = (random() % 3 ? random() : random() % 700) % bytes.size();  // headers more often
    const size_t length = std::min(bytes.size() - at, size_t(1 + random() % 40));
    switch (random() % 6) {
      case 0: bytes[at] = uint8_t(random()); break;
      case 1: bytes[at] ^= uint8_t(1u << random() % 8); break;
      case 2: bytes.erase(bytes.begin() + std::ptrdiff_t(at), bytes.begin() + std::ptrdiff_t(at + length)); break;
      case 3: std::fill_n(bytes.begin() + std::ptrdiff_t(at), length, uint8_t(random() % 2 ? 0xFF : 0)); break;
      case 4: bytes.resize(at); break;
      default: {
        const std::vector<uint8_t> piece(bytes.begin() + std::ptrdiff_t(at), bytes.begin() + std::ptrdiff_t(at + length));
        bytes.insert(bytes.begin() + std::ptrdiff_t(random() % bytes.size()), piece.begin(), piece.end());
      }
    }
  }
  return bytes;
}

TEST(DecodeFuzz, MutantsGiveImagesOrErrors) {
  const char* wanted = std::getenv("TESSERA_FUZZ_MUTANTS");
  const int mutants = wanted ? std::atoi(wanted) : std::getenv("TESSERA_FULL") ? 30'000 : 900;
  const auto seeds = corpus();
  const DecodeLimits limits{.max_pixels = 1 << 20, .max_scans = 100, .max_bytes = 1 << 20};
  WindowImage window, by_library;
  int images = 0, errors = 0;
  for (int n = 0; n < mutants; ++n) {
    SCOPED_TRACE("mutant " + std::to_string(n));
    std::mt19937 random(uint32_t(n) + 1000);
    const auto bytes = mutate(seeds[size_t(n) % seeds.size()], random);
    const auto image = decode(bytes, 0, limits);
    ++(image ? images : errors);
    if (!image) { EXPECT_FALSE(image.error().message.empty()); }
    if (image) { ASSERT_EQ(image->rgb.size(), size_t(image->width) * size_t(image->height) * 3); }
    const auto size = image_size(bytes, limits);
    if (!size) {
      EXPECT_FALSE(image);
      continue;
    }
    const PixelWindow w{size->height / 3, size->width / 4, std::max(1, size->height / 2), std::max(1, size->width / 2)};
    const Status status = decode_window(bytes, w, window, limits);
    if (bytes.size() > 2 && bytes[0] == 0xFF && bytes[1] == 0xD8) {
      const Status library = jpeg_decode_window(bytes, w, by_library, limits, EntropyCode::kLibrary);
      ASSERT_EQ(status.has_value(), library.has_value());
      if (!status) { ASSERT_EQ(status.error().message, library.error().message); }
      else { ASSERT_TRUE(window.decoded == by_library.decoded && std::memcmp(window.rgbx.data(), by_library.rgbx.data(), size_t(window.row_bytes * window.decoded.height)) == 0); }
    }
    if (!image || !status) continue;  // damage below the window may go unnoticed
    for (int y = w.top; y < w.top + w.height; ++y)
      for (int x = w.left; x < w.left + w.width; ++x)
        for (int c = 0; c < 3; ++c) ASSERT_EQ(window.pixel(y, x)[c], image->rgb[(size_t(y) * size_t(image->width) + size_t(x)) * 3 + size_t(c)]) << y << ", " << x;
  }
  EXPECT_GT(images, mutants / 100);  // the mutants are neither all harmless nor all hopeless
  EXPECT_GT(errors, mutants / 4);
}

}  // namespace
}  // namespace tessera::data::test
