// From files to a manifest: folders, tars, labels, staleness, and what is refused.
#include "data_loader/dataset/index.h"

#include <cmath>
#include <fcntl.h>
#include <sys/stat.h>

#include "data_loader/dataset/dataset.h"
#include "data_loader/dataset/labels.h"
#include "data_loader/tool/commands.h"
#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

Result<std::shared_ptr<const Dataset>> open(const std::string& path, const std::string& manifests = "", int threads = 2) {
  static TemporaryFolder elsewhere;
  OpenOptions options;
  options.data_path = path;
  options.manifest_folder = manifests.empty() ? elsewhere / "manifests" : manifests;
  options.threads = threads;
  return open_dataset(options);
}

std::shared_ptr<const Dataset> opened(const std::string& path, const std::string& manifests = "", int threads = 2) {
  auto dataset = open(path, manifests, threads);
  EXPECT_TRUE(dataset) << (dataset ? "" : dataset.error().message);
  return dataset ? *dataset : nullptr;
}

std::string refusal(const std::string& path) {
  const auto dataset = open(path);
  EXPECT_FALSE(dataset);
  if (dataset) return "";
  EXPECT_EQ(exit_code_of(dataset.error()), exit_codes::kDataCorrupt) << dataset.error().message;
  return dataset.error().message;
}

#define EXPECT_SAYS(text, word) EXPECT_NE((text).find(word), std::string::npos) << (text) << "\nlacks: " << (word)

// Sets a file's time apart from what it was.
void touch(const std::string& path, int64_t seconds) {
  const timespec times[2] = {{seconds, 0}, {seconds, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
}

TEST(Index, FolderWithClassFolders) {
  TemporaryFolder folder;
  write_test_file(folder / "d/dog/1.JPG", test_jpegs()[0]);
  write_test_file(folder / "d/cat/2.jpeg", test_jpegs()[1]);
  write_test_file(folder / "d/cat/1.png", "\x89PNG\r\n\x1a\n....IEND\xae\x42\x60\x82");
  write_test_file(folder / "d/cat/notes.txt", "no image");
  write_test_file(folder / "d/.hidden/3.jpg", test_jpegs()[2]);
  const auto dataset = opened(folder / "d");
  ASSERT_TRUE(dataset);
  const Manifest& manifest = *dataset->manifest;
  ASSERT_EQ(manifest.sample_count(), 3);
  EXPECT_EQ(manifest.key(0), "cat/1");
  EXPECT_EQ(manifest.key(1), "cat/2");
  EXPECT_EQ(manifest.key(2), "dog/1");
  EXPECT_EQ(manifest.class_names(), (std::vector<std::string>{"cat", "dog"}));
  EXPECT_EQ(manifest.label_names(), std::vector<std::string>{"class"});
  EXPECT_EQ(manifest.labels(0)[0], 0);
  EXPECT_EQ(manifest.labels(2)[0], 1);
  EXPECT_EQ(dataset->manifest_path, folder / "d/.tessera-manifest");
  SampleReader reader(dataset);
  EXPECT_EQ(*reader.read(2), test_jpegs()[0]);
}

TEST(Index, FlatFolderHasNoLabels) {
  TemporaryFolder folder;
  write_test_file(folder / "d/b.jpg", test_jpegs()[0]);
  write_test_file(folder / "d/a.jpg", test_jpegs()[1]);
  const auto dataset = opened(folder / "d");
  EXPECT_EQ(dataset->manifest->key(0), "a");
  EXPECT_TRUE(dataset->manifest->label_names().empty());
}

TEST(Index, TarAndFolderOfTheSameSamplesHaveOneDigest) {
  TemporaryFolder folder;
  std::vector<std::pair<std::string, std::string>> members;
  for (int i = 0; i < 10; ++i) {
    const std::string key = "k" + std::to_string(i);
    members.push_back({key + ".jpg", test_jpegs()[size_t(i)]});
    members.push_back({key + ".cls", std::to_string(i % 3)});
    members.push_back({key + ".json", "{\"class\": 9, \"count\": " + std::to_string(i) + ", \"flag\": true, \"text\": \"x\", \"distance\": 1.5}"});
  }
  write_test_file(folder / "t/a.tar", tar_of(members));
  for (const auto& [name, content] : members) write_test_file(folder / ("f/" + name), content);
  const auto tar = opened(folder / "t"), plain = opened(folder / "f");
  ASSERT_TRUE(tar && plain);
  EXPECT_EQ(tar->manifest->digest(), plain->manifest->digest());
  EXPECT_EQ(tar->manifest->label_names(), (std::vector<std::string>{"class", "count", "distance", "flag"}));
  EXPECT_EQ(tar->manifest->labels(7)[0], 1) << ".cls comes before \"class\" of .json";
  EXPECT_EQ(tar->manifest->labels(7)[1], 7);
  EXPECT_EQ(tar->manifest->labels(7)[3], 1);
  SampleReader reader(tar);
  EXPECT_EQ(*reader.read(7), test_jpegs()[7]);
}

TEST(Index, MovedShardsAndAnyNumberOfThreadsKeepTheDigest) {
  TemporaryFolder folder;
  for (int shard = 0; shard < 5; ++shard) {
    std::vector<std::pair<std::string, std::string>> members;
    for (int i = 0; i < 4; ++i) members.push_back({std::to_string(shard) + "_" + std::to_string(i) + ".jpg", test_jpegs()[size_t(shard * 4 + i)]});
    for (const char* place : {"a/", "b/deep/"}) write_test_file(folder / (place + std::string("s") + std::to_string(shard) + ".tar"), tar_of(members));
  }
  const auto first = opened(folder / "a", "", 1), second = opened(folder / "b/deep", "", 4), pattern = opened(folder / "a/s*.tar");
  EXPECT_EQ(first->manifest->digest(), second->manifest->digest());
  EXPECT_EQ(first->manifest->digest(), pattern->manifest->digest());
  EXPECT_EQ(first->manifest->shard_count(), 5);
  EXPECT_EQ(first->manifest->block_starts()[4], 16);
  const auto part = opened(folder / "a/s[01].tar");
  EXPECT_EQ(part->manifest->sample_count(), 8);
  EXPECT_NE(part->manifest->digest(), first->manifest->digest());
}

TEST(Index, IsMadeAgainWhenFilesChange) {
  TemporaryFolder folder;
  write_test_file(folder / "d/a.tar", tar_of({{"0.jpg", test_jpegs()[0]}}));
  const auto first = opened(folder / "d");
  EXPECT_NE(first->made_because, "");
  EXPECT_EQ(opened(folder / "d")->made_because, "") << "nothing changed";
  write_test_file(folder / "d/b.tar", tar_of({{"1.jpg", test_jpegs()[1]}}));
  const auto added = opened(folder / "d");
  EXPECT_SAYS(added->made_because, "other ones");
  EXPECT_EQ(added->manifest->sample_count(), 2);
  write_test_file(folder / "d/b.tar", tar_of({{"1.jpg", test_jpegs()[2]}}));
  touch(folder / "d/b.tar", 1'000'000'000);
  const auto changed = opened(folder / "d");
  EXPECT_SAYS(changed->made_because, "b.tar was changed");
  EXPECT_NE(changed->manifest->digest(), added->manifest->digest());
  std::filesystem::remove(folder / "d/b.tar");
  EXPECT_EQ(opened(folder / "d")->manifest->digest(), first->manifest->digest());
  std::string manifest = *read_file(folder / "d/.tessera-manifest");
  manifest[200] ^= 1;
  write_test_file(folder / "d/.tessera-manifest", manifest);
  const auto repaired = opened(folder / "d");
  EXPECT_SAYS(repaired->made_because, "damaged");
  EXPECT_EQ(repaired->manifest->digest(), first->manifest->digest());
}

TEST(Index, FoldersAreMadeAgainWhenImagesComeGoOrChange) {
  TemporaryFolder folder;
  write_test_file(folder / "d/x/0.jpg", test_jpegs()[0]);
  write_test_file(folder / "d/1.jpg", test_jpegs()[1]);
  opened(folder / "d");
  EXPECT_EQ(opened(folder / "d")->made_because, "");
  write_test_file(folder / "d/2.jpg", test_jpegs()[2]);
  EXPECT_SAYS(opened(folder / "d")->made_because, "added");
  write_test_file(folder / "d/x/3.jpg", test_jpegs()[3]);
  touch(folder / "d/x", 1'000'000'000);
  EXPECT_EQ(opened(folder / "d")->manifest->sample_count(), 4);
  write_test_file(folder / "d/2.jpg", test_jpegs()[4]);
  touch(folder / "d/2.jpg", 1'000'000'000);
  EXPECT_SAYS(opened(folder / "d")->made_because, "2.jpg was changed");
}

TEST(Index, ReadOnlyFolderKeepsItsManifestElsewhere) {
  TemporaryFolder folder;
  write_test_file(folder / "d/a.tar", tar_of({{"0.jpg", test_jpegs()[0]}}));
  ASSERT_EQ(::chmod((folder / "d").c_str(), 0555), 0);
  const auto dataset = opened(folder / "d", folder / "manifests");
  EXPECT_TRUE(dataset->manifest_path.starts_with(folder / "manifests/")) << dataset->manifest_path;
  EXPECT_FALSE(std::filesystem::exists(folder / "d/.tessera-manifest"));
  EXPECT_EQ(opened(folder / "d", folder / "manifests")->made_because, "");
  ::chmod((folder / "d").c_str(), 0755);
}

TEST(Index, RefusesDuplicateKeys) {
  TemporaryFolder folder;
  write_test_file(folder / "a/s.tar", tar_of({{"k.jpg", test_jpegs()[0]}, {"k.png", test_jpegs()[1]}}));
  const std::string inside = refusal(folder / "a");
  EXPECT_SAYS(inside, "s.tar");
  EXPECT_SAYS(inside, "'k'");
  EXPECT_SAYS(inside, "byte");
  write_test_file(folder / "b/s.tar", tar_of({{"k.cls", "1"}, {"k.jpg", test_jpegs()[0]}, {"k.cls", "2"}}));
  EXPECT_SAYS(refusal(folder / "b"), "second .cls");
  write_test_file(folder / "c/1.tar", tar_of({{"k.jpg", test_jpegs()[0]}}));
  write_test_file(folder / "c/2.tar", tar_of({{"k.jpg", test_jpegs()[1]}}));
  const std::string across = refusal(folder / "c");
  EXPECT_SAYS(across, "1.tar");
  EXPECT_SAYS(across, "2.tar");
  write_test_file(folder / "d/k.jpg", test_jpegs()[0]);
  write_test_file(folder / "d/k.png", test_jpegs()[1]);
  EXPECT_SAYS(refusal(folder / "d"), "k.png");
}

TEST(Index, RefusesLabelsThatItCannotRead) {
  TemporaryFolder folder;
  write_test_file(folder / "a/s.tar", tar_of({{"k.jpg", test_jpegs()[0]}, {"k.cls", "dog"}}));
  const std::string text = refusal(folder / "a");
  EXPECT_SAYS(text, "k.cls");
  EXPECT_SAYS(text, "'dog'");
  write_test_file(folder / "b/s.tar", tar_of({{"k.jpg", test_jpegs()[0]}, {"k.json", "{\"count\": "}}));
  EXPECT_SAYS(refusal(folder / "b"), "JSON");
  write_test_file(folder / "c/k.jpg", test_jpegs()[0]);
  write_test_file(folder / "c/k.cls", "-1");
  EXPECT_SAYS(refusal(folder / "c"), "'-1'");
}

TEST(Index, ListsBadImagesAndKeepsThem) {
  TemporaryFolder folder;
  write_test_file(folder / "d/cut.jpg", test_jpegs()[0].substr(0, test_jpegs()[0].size() / 2));
  write_test_file(folder / "d/empty.jpg", "");
  write_test_file(folder / "d/good.jpg", test_jpegs()[1]);
  write_test_file(folder / "d/text.png", "hello");
  const auto dataset = opened(folder / "d");
  ASSERT_EQ(dataset->manifest->sample_count(), 4);
  ASSERT_EQ(dataset->manifest->bad().size(), 3u);
  EXPECT_SAYS(dataset->manifest->bad()[0].reason, "cut.jpg");
  EXPECT_SAYS(dataset->manifest->bad()[0].reason, "was cut");
  EXPECT_SAYS(dataset->manifest->bad()[1].reason, "empty");
  EXPECT_SAYS(dataset->manifest->bad()[2].reason, "neither JPEG nor PNG");
  OpenOptions options;
  options.data_path = folder / "d";
  const auto verified = verify_command(options);
  ASSERT_TRUE(verified) << verified.error().message;
  EXPECT_EQ((*verified)["bad"].size(), 3u);
  write_test_file(folder / "t/s.tar", tar_of({{"k.jpg", test_jpegs()[0]}, {"lonely.cls", "1"}}));
  const auto tar = opened(folder / "t");
  EXPECT_EQ(tar->manifest->sample_count(), 1);
  ASSERT_EQ(tar->manifest->bad().size(), 1u);
  EXPECT_SAYS(tar->manifest->bad()[0].reason, "no .jpg");
}

TEST(Index, SaysWhatIsMissing) {
  TemporaryFolder folder;
  EXPECT_SAYS(refusal(folder / "no-such-folder"), "no-such-folder");
  write_test_file(folder / "empty/readme.txt", "x");
  EXPECT_SAYS(refusal(folder / "empty"), "neither images");
  EXPECT_SAYS(refusal(folder / "empty/*.tar"), "no file matches");
  EXPECT_SAYS(refusal(folder / "empty/*"), "is no .tar");
  write_test_file(folder / "cut/s.tar", tar_of({{"k.jpg", test_jpegs()[0]}}).substr(0, 700));
  EXPECT_SAYS(refusal(folder / "cut"), "s.tar");
}

TEST(Index, RefusesBytesThatDifferFromTheManifest) {
  TemporaryFolder folder;
  const std::string tar = tar_of({{"a.jpg", test_jpegs()[0]}, {"b.jpg", test_jpegs()[1]}});
  write_test_file(folder / "d/s.tar", tar);
  const auto dataset = opened(folder / "d");
  std::string flipped = tar;
  flipped[size_t(dataset->manifest->stored(1).offset) + 20] ^= 1;
  write_test_file(folder / "d/s.tar", flipped);
  SampleReader reader(dataset);
  EXPECT_TRUE(reader.read(0));
  const auto refused = reader.read(1);
  ASSERT_FALSE(refused);
  EXPECT_SAYS(refused.error().message, "s.tar");
  EXPECT_SAYS(refused.error().message, "key 'b'");
  EXPECT_SAYS(refused.error().message, "byte " + std::to_string(dataset->manifest->stored(1).offset));
}

// Members beyond the 8 GiB that an octal size can say, in a file that is mostly a hole: what lies behind them is found, an
// image of that size is refused, and a size that the file does not have is refused before anything is read.
TEST(Index, MembersOfNineGigabytes) {
  TemporaryFolder folder;
  const int64_t nine = int64_t{9} << 30;
  const auto write = [&](const std::string& path, const std::string& name, bool whole) {
    std::string header = tar_of({{name, ""}}).substr(0, 512);
    header[124] = char(0x80);
    for (int i = 0; i < 11; ++i) header[size_t(135 - i)] = i < 8 ? char(nine >> 8 * i) : 0;
    int64_t sum = 0;
    for (size_t i = 0; i < 512; ++i) sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(header[i]);
    std::snprintf(header.data() + 148, 8, "%06o", unsigned(sum));
    header[155] = ' ';
    write_test_file(path, header);
    if (!whole) return;
    ASSERT_EQ(::truncate(path.c_str(), 512 + nine), 0);
    std::ofstream(path, std::ios::binary | std::ios::app) << tar_of({{"k.jpg", test_jpegs()[0]}, {"k.cls", "3"}});
  };
  write(folder / "a/s.tar", "notes.bin", true);
  const auto dataset = opened(folder / "a");
  ASSERT_TRUE(dataset);
  ASSERT_EQ(dataset->manifest->sample_count(), 1);
  EXPECT_GT(dataset->manifest->stored(0).offset, nine);
  SampleReader reader(dataset);
  const auto read = reader.read(0);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(*read, test_jpegs()[0]);
  write(folder / "b/s.tar", "huge.jpg", true);
  const std::string image = refusal(folder / "b");
  EXPECT_SAYS(image, "huge.jpg");
  EXPECT_SAYS(image, std::to_string(nine));
  write(folder / "c/s.tar", "huge.jpg", false);
  EXPECT_SAYS(refusal(folder / "c"), "ends after");
}

TEST(Index, MissingLabelsAreNone) {
  TemporaryFolder folder;
  write_test_file(folder / "a/s.tar", tar_of({{"k.jpg", test_jpegs()[0]}, {"k.cls", "4"}, {"l.jpg", test_jpegs()[1]}}));
  const auto dataset = opened(folder / "a");
  ASSERT_TRUE(dataset);
  ASSERT_EQ(dataset->manifest->label_names(), std::vector<std::string>{"class"});
  EXPECT_EQ(dataset->manifest->labels(0)[0], 4);
  EXPECT_TRUE(std::isnan(dataset->manifest->labels(1)[0]));
}

// A shard that is cut, or overwritten, while a reader has it open: a sentence, never a wrong byte.
TEST(Index, AShardThatChangesWhileItIsRead) {
  TemporaryFolder folder;
  const std::string tar = tar_of({{"a.jpg", test_jpegs()[0]}, {"b.jpg", test_jpegs()[1]}}), path = folder / "d/s.tar";
  write_test_file(path, tar);
  const auto dataset = opened(folder / "d");
  SampleReader reader(dataset);
  EXPECT_TRUE(reader.read(1));
  ASSERT_EQ(::truncate(path.c_str(), dataset->manifest->stored(1).offset + 10), 0);
  EXPECT_TRUE(reader.read(0));
  const auto cut = reader.read(1);
  ASSERT_FALSE(cut);
  for (const char* word : {"s.tar", "key 'b'", "ends at byte"}) EXPECT_SAYS(cut.error().message, word);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(0) << tar_of({{"b.jpg", test_jpegs()[1]}, {"a.jpg", test_jpegs()[0]}});
  const auto other = reader.read(0);
  ASSERT_FALSE(other);
  for (const char* word : {"s.tar", "key 'a'", "differ from the manifest"}) EXPECT_SAYS(other.error().message, word);
}

TEST(Index, DigestOfTheRunMustFit) {
  TemporaryFolder folder;
  write_test_file(folder / "d/a.jpg", test_jpegs()[0]);
  const auto dataset = opened(folder / "d");
  EXPECT_TRUE(check_digest(*dataset, "auto"));
  EXPECT_TRUE(check_digest(*dataset, to_hex(dataset->manifest->digest())));
  const auto other = check_digest(*dataset, std::string(32, 'a'));
  ASSERT_FALSE(other);
  EXPECT_EQ(exit_code_of(other.error()), exit_codes::kConfig);
  EXPECT_SAYS(other.error().message, std::string(32, 'a'));
  EXPECT_SAYS(other.error().message, to_hex(dataset->manifest->digest()));
}

TEST(Index, MemberNamesFollowWebDataset) {
  std::string key, extension;
  EXPECT_TRUE(split_member_name("a.b/c/k.seg.PNG", &key, &extension));
  EXPECT_EQ(key, "a.b/c/k");
  EXPECT_EQ(extension, "seg.png");
  for (const char* name : {"noextension", "a/.hidden", "a.b/c", "k."}) EXPECT_FALSE(split_member_name(name, &key, &extension)) << name;
}

// CIFAR-10 as WebDataset shards, of the images handed out with the project.
TEST(Index, Cifar10) {
  const char* given = std::getenv("TESSERA_SAMPLE_DATA");
  const std::string data = std::string(given ? given : "../shared/data") + "/cifar10";
  if (!std::filesystem::exists(data)) {
    ASSERT_EQ(std::getenv("TESSERA_REQUIRE_SHARED"), nullptr) << data << " is missing";
    GTEST_SKIP() << "no " << data << "; set TESSERA_SAMPLE_DATA";
  }
  const auto test = opened(data + "/test-*.tar");
  ASSERT_TRUE(test);
  EXPECT_EQ(test->manifest->sample_count(), 10000);
  EXPECT_EQ(test->manifest->class_names().at(9), "truck");
  EXPECT_TRUE(test->manifest->bad().empty());
  std::vector<int> counts(10);
  for (SampleId id = 0; id < 10000; ++id) ++counts.at(size_t(test->manifest->labels(id)[0]));
  for (const int count : counts) EXPECT_EQ(count, 1000);
}

}  // namespace
}  // namespace tessera::data
