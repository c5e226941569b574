#include "worker/evaluate/npy.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "common/file.h"

namespace tessera::evaluate {
namespace {

class Npy : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = (std::filesystem::temp_directory_path() / "npy_test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(folder_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string folder_;
};

TEST_F(Npy, header_is_what_numpy_writes) {
  // numpy.save of zeros((3, 4), float32): the reference bytes of NumPy 2.3.
  const std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }";
  const std::string header = npy_header("<f4", {3, 4});
  EXPECT_EQ(header.size(), 128u);
  EXPECT_EQ(header.substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  EXPECT_EQ(header.substr(10, text.size()), text);
  EXPECT_EQ(header.substr(10 + text.size()), std::string(128 - 11 - text.size(), ' ') + "\n");
  EXPECT_NE(npy_header("<i8", {5}).find("'shape': (5,), }"), std::string::npos);
  EXPECT_NE(npy_header("<i8", {5, 6, 7}).find("'shape': (5, 6, 7), }"), std::string::npos);
}

TEST_F(Npy, header_is_a_multiple_of_64_for_every_length) {
  for (int64_t n = 1; n < int64_t{1} << 60; n = n * 7 + 1) EXPECT_EQ(npy_header("<f4", {n, n}).size() % 64, 0u);
}

TEST_F(Npy, reads_what_was_written_in_pieces) {
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  auto writer = NpyWriter::create(path("a.npy"), "<f4", {3, 2});
  ASSERT_TRUE(writer.has_value());
  ASSERT_TRUE(writer->append(values.data(), 8).has_value());
  ASSERT_TRUE(writer->append(values.data() + 2, 16).has_value());
  ASSERT_TRUE(writer->close().has_value());
  const auto file = NpyFile::open(path("a.npy"));
  ASSERT_TRUE(file.has_value()) << file.error().message;
  EXPECT_EQ(file->shape(), (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(std::memcmp(file->data(), values.data(), 24), 0);
}

TEST_F(Npy, fewer_elements_than_the_shape_is_an_error) {
  auto writer = NpyWriter::create(path("short.npy"), "<f4", {3});
  ASSERT_TRUE(writer.has_value());
  EXPECT_FALSE(writer->close().has_value());
}

TEST_F(Npy, damaged_files_are_refused_with_their_name) {
  const std::string good = npy_header("<f4", {2}) + std::string(8, 'x');
  for (const std::string& bytes : {std::string(), std::string("text"), good.substr(0, 20), good.substr(0, good.size() - 1), good + "y", npy_header("<f8", {1}) + std::string(8, 'x'),
                                   npy_header("<f4", {int64_t{1} << 40, int64_t{1} << 40}) + std::string(8, 'x')}) {
    ASSERT_TRUE(write_file_atomic(path("bad.npy"), bytes).has_value());
    const auto file = NpyFile::open(path("bad.npy"));
    ASSERT_FALSE(file.has_value());
    EXPECT_EQ(file.error().code, ErrorCode::kFixData);
    EXPECT_NE(file.error().message.find("bad.npy"), std::string::npos);
  }
}

}  // namespace
}  // namespace tessera::evaluate
