#include <gtest/gtest.h>

#include "tests/unit/import/small_archive.h"
#include "worker/import/zip_archive.h"

namespace tessera::import {
namespace {

using test::TemporaryFile;
using test::zip_of;

const std::vector<std::pair<std::string, std::string>> kRecords{{"data.pkl", "pickle"}, {"data/0", std::string(1000, 'x')}, {"byteorder", "little"}};

std::string error_of(const std::string& bytes) {
  const TemporaryFile file(bytes);
  const auto archive = ZipArchive::open(file.path());
  if (!archive) return archive.error().message;
  std::string out(size_t(archive->file_bytes()), '\0');
  for (const auto& [name, record] : archive->records())
    if (const auto read = archive->read(name, out.data()); !read) return read.error().message;
  return "";
}

void expect_error(const std::string& bytes, const std::string& words) {
  const std::string message = error_of(bytes);
  EXPECT_NE(message.find(words), std::string::npos) << message;
}

TEST(ZipArchive, ReadsStoredRecords) {
  const TemporaryFile file(zip_of(kRecords));
  const auto archive = ZipArchive::open(file.path());
  ASSERT_TRUE(archive) << archive.error().message;
  ASSERT_EQ(archive->records().size(), 3u);
  std::string text(6, ' ');
  ASSERT_TRUE(archive->read("data.pkl", text.data()));
  EXPECT_EQ(text, "pickle");
  EXPECT_EQ(archive->find("data/1"), nullptr);
}

TEST(ZipArchive, DamageIsNamed) {
  const std::string good = zip_of(kRecords);
  EXPECT_EQ(error_of(good), "");
  expect_error("", "no zip file");
  expect_error("garbage garbage garbage garbage garbage", "no zip file");
  expect_error("\x80\x02\x8a\x0al\xfc\x9c" "F\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before version 1.6");
  for (const double share : {0.1, 0.5, 0.9, 0.99}) expect_error(good.substr(0, size_t(double(good.size()) * share)), "truncated");
  expect_error(good.substr(0, good.size() - 1), "truncated");
  expect_error(zip_of(kRecords, 8), "compressed");
  expect_error(zip_of(kRecords, 0, 1), "checksum");
  std::string flipped = good;
  flipped[flipped.find("xxxx") + 500] ^= 4;
  expect_error(flipped, "record data/0");
  expect_error(zip_of({{"a", "1"}, {"a", "2"}}), "twice");
}

// Every byte of the directory and of the end record set to two other values: an error or the same records, never a crash
// and never a read outside the file.
TEST(ZipArchive, AnyDamagedByteIsRefusedOrHarmless) {
  const std::string good = zip_of(kRecords);
  int refused = 0;
  for (size_t at = 0; at < good.size(); ++at) {
    if (at > 80 && at < 1000) continue;  // within data/0
    for (const uint8_t change : {0x01, 0x80, 0xFF}) {
      std::string bad = good;
      bad[at] = char(uint8_t(bad[at]) ^ change);
      refused += !error_of(bad).empty();
    }
  }
  EXPECT_GT(refused, 300);
}

TEST(ZipArchive, AMissingFileIsAnIoError) {
  const auto archive = ZipArchive::open("no/such/file.pth.tar");
  ASSERT_FALSE(archive);
  EXPECT_EQ(archive.error().code, ErrorCode::kIo);
}

}  // namespace
}  // namespace tessera::import
