// Tars as they should be, and every way in which they are refused.
#include "data_loader/dataset/tar.h"

#include <cstring>

#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

struct Walked {
  std::vector<TarMember> members;
  std::string error;
};

Walked walk(const std::string& archive) {
  TemporaryFolder folder;
  write_test_file(folder / "a.tar", archive);
  const auto file = RandomAccessFile::open(folder / "a.tar");
  TarReader reader(*file);
  Walked out;
  for (;;) {
    auto member = reader.next();
    if (!member) return out.error = member.error().message, out;
    if (!*member) return out;
    out.members.push_back(**member);
  }
}

// Writes the checksum of the header at `byte` anew.
void seal(std::string* archive, size_t byte = 0) {
  std::memset(archive->data() + byte + 148, ' ', 8);
  unsigned sum = 0;
  for (size_t i = 0; i < 512; ++i) sum += static_cast<unsigned char>((*archive)[byte + i]);
  std::snprintf(archive->data() + byte + 148, 8, "%06o", sum);
  (*archive)[byte + 155] = ' ';
}

std::string with(std::string archive, size_t at, const std::string& bytes) {
  archive.replace(at, bytes.size(), bytes);
  seal(&archive);
  return archive;
}

// A pax or GNU extension header with its content, before a member.
std::string extension(char type, const std::string& content) {
  std::string out;
  append_tar_member(&out, "ext", content);
  out[156] = type;
  seal(&out);
  return out;
}

const std::string kGood = tar_of({{"a/0.jpg", "12345"}, {"a/0.cls", "3"}});

TEST(Tar, GivesMembersWithOffsets) {
  const Walked walked = walk(kGood);
  ASSERT_EQ(walked.error, "");
  ASSERT_EQ(walked.members.size(), 2u);
  EXPECT_EQ(walked.members[0].name, "a/0.jpg");
  EXPECT_EQ(walked.members[0].offset, 512);
  EXPECT_EQ(walked.members[0].size, 5);
  EXPECT_EQ(walked.members[1].header_byte, 1024);
}

TEST(Tar, ReadsLongNamesOfPaxAndGnu) {
  const std::string long_name = std::string(150, 'd') + "/" + std::string(120, 'k') + ".jpg";
  std::string record = " path=" + long_name + "\n";
  record = std::to_string(record.size() + 3) + record;
  for (const std::string& header : {extension('x', record), extension('L', long_name + '\0')}) {
    const Walked walked = walk(header + kGood);
    ASSERT_EQ(walked.error, "");
    ASSERT_EQ(walked.members.size(), 2u);
    EXPECT_EQ(walked.members[0].name, long_name);
    EXPECT_EQ(walked.members[1].name, "a/0.cls") << "an extension holds for one member only";
  }
}

TEST(Tar, PassesOverFoldersAndReadsPrefixes) {
  std::string folder;
  append_tar_member(&folder, "a/", "");
  folder[156] = '5';
  seal(&folder);
  std::string prefixed = kGood;
  std::memcpy(prefixed.data() + 345, "far/away", 8);
  seal(&prefixed);
  const Walked walked = walk(folder + prefixed);
  ASSERT_EQ(walked.error, "");
  ASSERT_EQ(walked.members.size(), 2u);
  EXPECT_EQ(walked.members[0].name, "far/away/a/0.jpg");
}

struct Refusal {
  const char* what;
  std::string archive;
  std::vector<std::string> words;
};

TEST(Tar, RefusesWhatItCannotTrust) {
  std::string flipped = kGood;
  flipped[3] ^= 1;
  std::string base256 = kGood;
  std::memcpy(base256.data() + 124, "\x80\0\0\0\x02\0\0\0\0\0\0\0", 12);  // 8 GiB and more
  base256[128] = 2;
  seal(&base256);
  std::string lone = kGood.substr(0, 1024) + std::string(512, '\0') + kGood.substr(1024);
  const std::vector<Refusal> refusals{
      {"a flipped bit", flipped, {"checksum", "byte 0"}},
      {"no tar at all", std::string(2048, 'x'), {"ustar"}},
      {"a symbolic link", with(kGood, 156, "2"), {"link", "a/0.jpg", "byte 0"}},
      {"a hard link", with(kGood, 156, "1"), {"link"}},
      {"a device", with(kGood, 156, "3"), {"type '3'"}},
      {"a sparse file", with(kGood, 156, "S"), {"sparse"}},
      {"an absolute name", with(kGood, 0, "/etc/pw"), {"absolute", "/etc/pw"}},
      {"a way out", with(kGood, 0, "../0.jpg"), {"'..'"}},
      {"a way out inside", with(kGood, 0, "a/../b"), {"'..'"}},
      {"a size beyond the file", with(kGood, 124, "00000777777"), {"262143 bytes", "ends after", "byte 0"}},
      {"a size of 8 GiB", base256, {"bytes", "ends after"}},
      {"a size that is no number", with(kGood, 124, "0000000zz05"), {"size"}},
      {"a cut member", kGood.substr(0, 1030), {"ends without"}},
      {"no end mark", kGood.substr(0, 2048), {"end-of-archive"}},
      {"a lone zero block", lone, {"lone block"}},
      {"a pax header that lies", extension('x', "99 path=abc\n") + kGood, {"pax"}},
      {"a pax size that is none", extension('x', "12 size=-5\n") + kGood, {"pax"}},
      {"a global path", extension('g', "12 path=abc\n") + kGood, {"path of all members"}},
      {"an empty file", "", {"end-of-archive"}},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.what);
    const Walked walked = walk(refusal.archive);
    EXPECT_NE(walked.error, "");
    EXPECT_NE(walked.error.find("a.tar"), std::string::npos) << walked.error;
    for (const std::string& word : refusal.words) EXPECT_NE(walked.error.find(word), std::string::npos) << walked.error << "\nlacks: " << word;
  }
}

// Whatever single byte of the headers changes, the reader ends in order: members or a sentence, never outside the file.
TEST(Tar, EndsInOrderForEveryChangedHeaderByte) {
  TemporaryFolder folder;
  for (size_t byte = 0; byte < 512; ++byte) {
    for (const char value : {'\0', '\x80', '7', '/', '\xff'}) {
      std::string archive = kGood;
      archive[byte] = value;
      if (byte < 148 || byte >= 156) seal(&archive);
      write_test_file(folder / "a.tar", archive);
      const auto file = RandomAccessFile::open(folder / "a.tar");
      TarReader reader(*file);
      for (int steps = 0;; ++steps) {
        ASSERT_LT(steps, 10);
        const auto member = reader.next();
        if (!member || !*member) break;
        EXPECT_LE((*member)->offset + (*member)->size, file->size());
      }
    }
  }
}

}  // namespace
}  // namespace tessera::data
