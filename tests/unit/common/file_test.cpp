#include "common/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "scratch.h"

namespace tessera {
namespace {

TEST(File, WritesAtomicallyAndReadsBack) {
  const test::Scratch folder;
  const std::string path = folder / "state.json", content = std::string("one\0two", 7);
  ASSERT_TRUE(write_file_atomic(path, content, 0600));
  EXPECT_EQ(read_file(path).value(), content);
  struct stat info{};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_TRUE(write_file_atomic(path, ""));
  EXPECT_EQ(read_file(path).value(), "");
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++entries;
  EXPECT_EQ(entries, 1) << "a temporary file was left";
}

// A write that fails leaves the old content and no temporary file.
TEST(File, FailedWriteLeavesWhatWasThere) {
  const test::Scratch folder;
  const std::string occupied = folder / "occupied";
  ASSERT_TRUE(make_folders(occupied + "/inner"));
  const auto onto_folder = write_file_atomic(occupied, "x");
  ASSERT_FALSE(onto_folder);
  EXPECT_EQ(onto_folder.error().code, ErrorCode::kIo);
  EXPECT_NE(onto_folder.error().message.find(occupied), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_directory(occupied + "/inner"));
  int entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++entries;
  EXPECT_EQ(entries, 1);
  EXPECT_FALSE(write_file_atomic(folder / "no/such/folder/file", "x"));
  const auto full = write_file_atomic("/dev/full/x", "x");
  EXPECT_FALSE(full);
}

TEST(File, ReadNamesPathAndCause) {
  const test::Scratch folder;
  const auto missing = read_file(folder / "none");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kIo);
  EXPECT_NE(missing.error().message.find("none: No such file"), std::string::npos) << missing.error().message;
  std::ofstream(folder / "large") << std::string(2000, 'x');
  const auto large = read_file(folder / "large", 1999);
  ASSERT_FALSE(large);
  EXPECT_NE(large.error().message.find("limit"), std::string::npos);
  EXPECT_TRUE(read_file(folder / "large", 2000));
  EXPECT_FALSE(read_file(folder.path()));
  // A file without an end: the limit holds for what fstat does not know.
  EXPECT_FALSE(read_file("/dev/zero", 1 << 20));
}

TEST(File, Folders) {
  const test::Scratch folder;
  EXPECT_TRUE(make_folders(folder / "a/b/c"));
  EXPECT_TRUE(make_folders(folder / "a/b/c"));
  std::ofstream(folder / "file");
  EXPECT_FALSE(make_folders(folder / "file/inner"));
  EXPECT_TRUE(fsync_folder(folder.path()));
  EXPECT_FALSE(fsync_folder(folder / "none"));
}

TEST(File, FreeBytesOfAFolderThatDoesNotExistYet) {
  const test::Scratch folder;
  const auto here = free_bytes(folder.path()), below = free_bytes(folder / "not/yet");
  ASSERT_TRUE(here && below);
  EXPECT_GE(*here, 0);
  EXPECT_GE(*below, 0);
}

TEST(File, ExecutableFolderIsThisTests) {
  EXPECT_TRUE(std::filesystem::exists(executable_folder() + "/common_test"));
}

TEST(File, HumanBytes) {
  EXPECT_EQ(human_bytes(999), "999 B");
  EXPECT_EQ(human_bytes(1500000000), "1.5 GB");
  EXPECT_EQ(human_bytes(250000), "250 kB");
}

}  // namespace
}  // namespace tessera
