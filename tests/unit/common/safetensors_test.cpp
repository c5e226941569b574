#include "common/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "common/file.h"
#include "scratch.h"

namespace tessera {
namespace {

void write_raw(const std::string& path, const std::string& header, const std::string& data) {
  uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  std::ofstream(path, std::ios::binary) << bytes + header + data;
}

TEST(Safetensors, RoundTripsWithHashAndMetadata) {
  const test::Scratch folder;
  const float weights[6] = {0, -1.5f, 2, 3, 4, 5};
  const int64_t step = 7;
  const std::vector<TensorView> tensors{{"b", "F32", {2, 3}, weights, sizeof weights}, {"a", "I64", {}, &step, sizeof step}, {"empty", "U8", {0}, nullptr, 0}};
  const auto written = write_safetensors(folder / "x.safetensors", tensors, {{"k", "v \"q\""}});
  ASSERT_TRUE(written) << written.error().message;
  EXPECT_EQ(written->hash, hash_file(folder / "x.safetensors").value());
  const auto file = SafetensorsFile::open(folder / "x.safetensors");
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  EXPECT_EQ(file->metadata().at("k"), "v \"q\"");
  const TensorView* b = file->find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b->count(), 6);
  EXPECT_EQ(std::memcmp(b->data, weights, sizeof weights), 0);
  EXPECT_EQ(file->find("c"), nullptr);
}

TEST(Safetensors, DamagedFilesAreRefusedWithTheirName) {
  const test::Scratch folder;
  const std::string path = folder / "bad.safetensors";
  const std::vector<std::pair<std::string, std::string>> cases{
      {"{", ""},
      {"[]", ""},
      {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "1234567"},                                                          // truncated
      {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "123456789"},                                                        // trailing
      {R"({"t":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "12345678"},                                                         // shape
      {R"({"t":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}})", "12345678"},                                                          // dtype
      {R"({"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "12345678"},                                                        // negative
      {R"({"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", ""},                                             // product wraps
      {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "12345678"},                                                         // backwards
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", "123456"},        // overlap
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}})", "123456"},        // hole
      {R"({"t":3})", ""}};
  for (const auto& [header, data] : cases) {
    write_raw(path, header, data);
    const auto file = SafetensorsFile::open(path);
    ASSERT_FALSE(file) << header;
    EXPECT_EQ(file.error().code, ErrorCode::kFixData) << header;
    EXPECT_NE(file.error().message.find(path), std::string::npos) << file.error().message;
  }
  std::ofstream(path, std::ios::binary) << "\xff\xff\xff\xff\xff\xff\xff\x7f{}";
  EXPECT_FALSE(SafetensorsFile::open(path));
  std::ofstream(path, std::ios::binary) << "abc";
  EXPECT_FALSE(SafetensorsFile::open(path));
  EXPECT_EQ(SafetensorsFile::open(folder / "none").error().code, ErrorCode::kIo);
}

// Any change of the header is either refused or still describes the file's bytes exactly.
TEST(Safetensors, MutatedHeadersNeverReachOutsideTheFile) {
  const test::Scratch folder;
  const std::string path = folder / "m.safetensors";
  std::mt19937 draw(4);
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}})", data = "hello world";
  int accepted = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string header = good;
    for (int change = int(draw() % 3); change >= 0; --change) {
      const size_t at = draw() % header.size();
      switch (draw() % 3) {
        case 0: header[at] = char(draw()); break;
        case 1: header.erase(at, 1 + draw() % 4); break;
        default: header.insert(at, 1, "0123456789[]{},:\"-"[draw() % 18]);
      }
      if (header.empty()) header = "{}";
    }
    write_raw(path, header, data);
    const auto file = SafetensorsFile::open(path);
    if (!file) continue;
    ++accepted;
    int64_t bytes = 0;
    for (const auto& tensor : file->tensors()) bytes += tensor.size_bytes;
    ASSERT_EQ(bytes, int64_t(data.size())) << header;
  }
  EXPECT_GT(accepted, 0);
}

TEST(Safetensors, CanonicalDigestWidensAndIgnoresFileBorders) {
  const test::Scratch folder;
  const float whole[2] = {1.0f, -2.5f};
  const uint16_t bf16[2] = {0x3F80, 0xC020}, fp16[2] = {0x3C00, 0xC100};
  const auto digest = [&](const char* dtype, const void* data, int64_t size) {
    EXPECT_TRUE(write_safetensors(folder / dtype, {{"w", dtype, {2}, data, size}}, {}));
    return canonical_sha256({folder / dtype}).value();
  };
  const std::string expected = digest("F32", whole, 8);
  EXPECT_EQ(digest("BF16", bf16, 4), expected);
  EXPECT_EQ(digest("F16", fp16, 4), expected);
  ASSERT_TRUE(write_safetensors(folder / "one", {{"a", "F32", {2}, whole, 8}, {"b", "F32", {1}, whole, 4}}, {}));
  ASSERT_TRUE(write_safetensors(folder / "two-a", {{"b", "F32", {1}, whole, 4}}, {{"other", "metadata"}}));
  ASSERT_TRUE(write_safetensors(folder / "two-b", {{"a", "F32", {2}, whole, 8}}, {}));
  EXPECT_EQ(canonical_sha256({folder / "one"}).value(), canonical_sha256({folder / "two-a", folder / "two-b"}).value());
  EXPECT_FALSE(canonical_sha256({folder / "one", folder / "two-a"}));
}

// A file that cannot grow stands for a full disk: an error with the cause, and no partial file.
TEST(Safetensors, FailedWriteRemovesThePartialFile) {
  const test::Scratch folder;
  const std::vector<float> values(1 << 16);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto written = write_safetensors(folder / "w", {{"w", "F32", {1 << 16}, values.data(), 4 << 16}}, {});
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kIo);
  EXPECT_NE(written.error().message.find("File too large"), std::string::npos) << written.error().message;
  EXPECT_FALSE(std::filesystem::exists(folder / "w"));
}

}  // namespace
}  // namespace tessera
