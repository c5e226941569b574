// Checkpoints on a real file system: any world size reads any checkpoint, and what is damaged is refused by name.
#include "worker/checkpoint/checkpoint.h"

#include <ATen/ops/rand.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <algorithm>
#include <unistd.h>
#include <random>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "common/sealed_json.h"
#include "common/config.h"
#include "common/file.h"

namespace tessera::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using nlohmann::json;

FunctionConfig tiny(int width = 24) {
  auto config = parse_config("function:\n  model: {name: custom, patch_size: 8, image_size: 64, embed_dim: " + std::to_string(width) +
                                 ", depth: 2, num_heads: 3}\n  predictor: {embed_dim: 12, depth: 1, num_heads: 3}\n  masks: {min_keep: 2}\n  batch: {tile_size: 2, tiles: 6}\n  steps: 10\n",
                             "test", {});
  TESSERA_CHECK(config.has_value(), config ? "" : config.error().message);
  return config->function;
}

// Every role filled with values of its own, as after some steps.
model::State trained(const FunctionConfig& function) {
  model::State s = model::State::initial(function);
  float value = 0.5f;
  for (const auto& place : s.layout.tensors)
    for (auto* role : {&s.weights, &s.target, &s.exp_avg, &s.exp_avg_sq}) {
      if (role == &s.target && place.network != model::Network::kContextEncoder) continue;
      float* x = (*role)[size_t(place.bucket)].mutable_data_ptr<float>() + place.offset;
      for (int64_t i = 0; i < place.count; ++i) x[i] = value = value * 0.999f + 0.001f * float(i % 17);
    }
  s.target_position.mul_(0.75);
  s.step = 1200, s.adam_steps = 1198;
  return s;
}

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/tessera-checkpoint-XXXXXX";
    root_ = mkdtemp(name);
  }
  void TearDown() override { fs::remove_all(root_); }

  Scalars scalars(const model::State& s) const { return {s.step, s.adam_steps, "lineage", "function: text", "id", "class", s.digest(), 48}; }

  // What the coordinator does with the parts of all ranks.
  std::string write(const model::State& s, int world) {
    json manifest, files = json::array(), tensors = json::array();
    std::string attempt;
    for (Rank r = 0; r < world; ++r) {
      auto file = write_snapshot(take_snapshot(s, scalars(s), {2, 3}, r, world), root_);
      EXPECT_TRUE(file) << file.error().message;
      attempt = file->attempt;
      const json part = json::parse(file->manifest_part);
      EXPECT_EQ(part.contains("scalars"), r == 0);
      if (r == 0) manifest = part["scalars"];
      for (const auto& t : part["tensors"]) tensors.push_back(t);
      files.push_back({{"file", file->file}, {"size_bytes", file->size_bytes}, {"hash", to_hex(file->hash)}});
    }
    EXPECT_EQ(attempt, ".attempt-2-3-1200");
    manifest["files"] = files, manifest["tensors"] = tensors;
    const std::string folder = root_ + "/step-" + std::to_string(world);
    EXPECT_TRUE(write_file_atomic(root_ + "/" + attempt + "/manifest.json", seal_json(manifest)));
    fs::rename(root_ + "/" + attempt, folder);
    return folder;
  }

  json manifest_of(const std::string& folder) { return json::parse(*read_file(folder + "/manifest.json")); }
  void set_manifest(const std::string& folder, const json& manifest) { ASSERT_TRUE(write_file_atomic(folder + "/manifest.json", seal_json(manifest))); }

  std::string root_;
};

TEST_F(CheckpointTest, AnyWorldSizeReadsAnyCheckpoint) {
  const FunctionConfig function = tiny();
  const model::State before = trained(function);
  for (const int world : {1, 2, 3, 7, 200}) {  // 200 writers: more than tensors
    const auto after = read_checkpoint(write(before, world), function);
    ASSERT_TRUE(after) << after.error().message;
    EXPECT_EQ(after->digest(), before.digest()) << world << " writers";
    EXPECT_EQ(after->step, 1200);
    EXPECT_EQ(after->adam_steps, 1198);
    EXPECT_TRUE(after->target_position.equal(before.target_position)) << "the target's positions drift: they are state";
  }
}

TEST_F(CheckpointTest, TheManifestKeepsItsScalars) {
  const model::State state = trained(tiny());
  const auto manifest = read_manifest(write(state, 2));
  ASSERT_TRUE(manifest);
  EXPECT_EQ(manifest->scalars.lineage, "lineage");
  EXPECT_EQ(manifest->scalars.function_yaml, "function: text");
  EXPECT_EQ(manifest->scalars.numerics_class, "class");
  EXPECT_EQ(manifest->scalars.sample_position, 48);
  EXPECT_EQ(manifest->scalars.state_digest, state.digest());
  EXPECT_EQ(manifest->files.size(), 2u);
}

TEST_F(CheckpointTest, DealingCoversEachTensorOnceAndEvenly) {
  const model::State state = trained(tiny());
  const auto tensors = state_tensors(state);
  int64_t total = 0, largest = 0;
  for (const auto& t : tensors) total += t.size_bytes, largest = std::max(largest, t.size_bytes);
  for (int world = 1; world <= 20; ++world) {
    std::set<size_t> seen;
    for (const auto& share : deal(tensors, world)) {
      int64_t bytes = 0;
      for (const size_t i : share) EXPECT_TRUE(seen.insert(i).second), bytes += tensors[i].size_bytes;
      EXPECT_LE(bytes, total / world + largest) << world << " writers";
    }
    EXPECT_EQ(seen.size(), tensors.size());
  }
}

TEST_F(CheckpointTest, TensorNamesAreThePublishedOnes) {
  std::set<std::string> names;
  const model::State state = trained(tiny());
  for (const auto& t : state_tensors(state)) EXPECT_TRUE(names.insert(t.name).second) << t.name;
  for (const char* name : {"context_encoder.blocks.0.attn.qkv.weight", "target_encoder.blocks.1.mlp.fc2.bias", "predictor.mask_token", "optimizer.exp_avg.context_encoder.norm.weight",
                           "optimizer.exp_avg_sq.predictor.mask_token", "context_encoder.pos_embed", "target_encoder.pos_embed", "predictor.predictor_pos_embed"})
    EXPECT_TRUE(names.contains(name)) << name;
}

TEST_F(CheckpointTest, OneFlippedBitIsRefusedWithTheFilesName) {
  const FunctionConfig function = tiny();
  const std::string folder = write(trained(function), 3);
  for (int rank = 0; rank < 3; ++rank) {
    const std::string name = file_name(rank, 3), path = folder + "/" + name;
    const auto size = int64_t(fs::file_size(path));
    for (const int64_t at : {int64_t{3}, size / 2, size - 1}) {
      const auto flip = [&] {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(at);
        const char c = char(file.get() ^ 0x10);
        file.seekp(at);
        file.put(c);
      };
      flip();
      const auto read = read_checkpoint(folder, function);
      ASSERT_FALSE(read) << name << " byte " << at;
      EXPECT_EQ(read.error().code, ErrorCode::kFixData);
      EXPECT_THAT(read.error().message, HasSubstr(name));
      flip();
    }
  }
  EXPECT_TRUE(read_checkpoint(folder, function));
}

TEST_F(CheckpointTest, TruncatedAndMissingFilesAreNamed) {
  const FunctionConfig function = tiny();
  const std::string folder = write(trained(function), 2), path = folder + "/" + file_name(1, 2);
  fs::resize_file(path, fs::file_size(path) - 1);
  auto read = read_checkpoint(folder, function);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message, HasSubstr(file_name(1, 2)));
  EXPECT_THAT(read.error().message, HasSubstr("truncated"));
  fs::remove(path);
  read = read_checkpoint(folder, function);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::kFixData);
  EXPECT_THAT(read.error().message, HasSubstr(file_name(1, 2)));
}

TEST_F(CheckpointTest, AnotherModelIsRefusedWithTensorAndShapes) {
  const std::string folder = write(trained(tiny(24)), 1);
  const auto read = read_checkpoint(folder, tiny(36));
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message, HasSubstr("the configuration needs F32 ["));
}

TEST_F(CheckpointTest, AMissingTensorIsNamed) {
  const FunctionConfig function = tiny();
  const model::State state = trained(function);
  const std::string folder = write(state, 1), path = folder + "/" + file_name(0, 1);
  auto tensors = state_tensors(state);
  std::erase_if(tensors, [](const auto& t) { return t.name == "predictor.mask_token"; });
  const auto written = write_safetensors(path, tensors, {});
  ASSERT_TRUE(written);
  json manifest = manifest_of(folder);
  manifest["files"][0]["size_bytes"] = written->size_bytes, manifest["files"][0]["hash"] = to_hex(written->hash);
  set_manifest(folder, manifest);
  const auto read = read_checkpoint(folder, function);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message, HasSubstr("predictor.mask_token is missing"));
}

// Right hashes over wrong numbers: only the state's own digest tells.
TEST_F(CheckpointTest, AStateOfAnotherDigestIsRefused) {
  const FunctionConfig function = tiny();
  const std::string folder = write(trained(function), 1);
  json manifest = manifest_of(folder);
  manifest["adam_steps"] = 1199;
  set_manifest(folder, manifest);
  const auto read = read_checkpoint(folder, function);
  ASSERT_FALSE(read);
  EXPECT_THAT(read.error().message, HasSubstr("digest"));
}

TEST_F(CheckpointTest, DamagedManifestsAreRefused) {
  const FunctionConfig function = tiny();
  const std::string folder = write(trained(function), 1);
  const json good = manifest_of(folder);
  std::vector<json> bad(6, good);
  bad[0]["schema"] = 2;
  bad[1].erase("step");
  bad[2]["state_digest"] = "xyz";
  bad[3]["files"][0]["file"] = "../../etc/passwd";
  bad[4]["files"][0]["hash"] = 5;
  bad[5]["files"] = json::array();
  for (size_t i = 0; i < bad.size(); ++i) {
    set_manifest(folder, bad[i]);
    const auto read = read_checkpoint(folder, function);
    ASSERT_FALSE(read) << "manifest " << i;
    EXPECT_EQ(read.error().code, ErrorCode::kFixData) << read.error().message;
  }
  ASSERT_TRUE(write_file_atomic(folder + "/manifest.json", "{\"schema\": 1, "));
  EXPECT_FALSE(read_checkpoint(folder, function));
}

// One bit, anywhere in any of its files, or a file cut short anywhere: never a state.
TEST_F(CheckpointTest, NoFlippedBitAndNoTruncationGoesUnseen) {
  const FunctionConfig function = tiny();
  const std::string folder = write(trained(function), 2);
  ASSERT_TRUE(read_checkpoint(folder, function));
  const int64_t rounds = std::getenv("TESSERA_FULL") ? 1000000 : 2000;
  std::vector<std::string> paths;
  std::vector<int64_t> ends;  // cumulative sizes: every byte of the checkpoint is hit equally often
  for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) ends.push_back((ends.empty() ? 0 : ends.back()) + int64_t(fs::file_size(path)));
  std::mt19937_64 draw(7);
  for (int64_t round = 0; round < rounds; ++round) {
    // Every fourth goes to the manifest, which is small.
    const auto at = int64_t(draw() % uint64_t(ends.back()));
    size_t file = size_t(std::upper_bound(ends.begin(), ends.end(), at) - ends.begin());
    if (round % 4 == 0) file = size_t(std::find_if(paths.begin(), paths.end(), [](const auto& p) { return p.ends_with("manifest.json"); }) - paths.begin());
    const int64_t size = ends[file] - (file == 0 ? 0 : ends[file - 1]), offset = int64_t(draw() % uint64_t(size));
    const std::string before = *read_file(paths[file], int64_t{1} << 30);
    const bool cut = round % 50 == 1;
    {
      const int fd = ::open(paths[file].c_str(), O_RDWR | O_CLOEXEC);
      ASSERT_GE(fd, 0);
      const char flipped = char(before[size_t(offset)] ^ (1 << draw() % 8));
      ASSERT_TRUE(cut ? ::ftruncate(fd, offset) == 0 : ::pwrite(fd, &flipped, 1, offset) == 1);
      ::close(fd);
    }
    ASSERT_FALSE(read_checkpoint(folder, function)) << paths[file] << (cut ? " cut at byte " : ": a bit flipped in byte ") << offset << ", round " << round;
    const int fd = ::open(paths[file].c_str(), O_RDWR | O_CLOEXEC);
    ASSERT_TRUE(cut ? ::pwrite(fd, before.data() + offset, size_t(size - offset), offset) == size - offset : ::pwrite(fd, before.data() + offset, 1, offset) == 1);
    ::close(fd);
  }
  EXPECT_TRUE(read_checkpoint(folder, function)) << "whole again";
}

TEST_F(CheckpointTest, OneProcessWritesAWholeCheckpoint) {
  const FunctionConfig function = tiny();
  const model::State state = trained(function);
  const std::string folder = root_ + "/imported/model";
  const auto done = write_checkpoint(state, scalars(state), folder);
  ASSERT_TRUE(done) << done.error().message;
  const auto read = read_checkpoint(folder, function);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->digest(), state.digest());
  EXPECT_FALSE(write_checkpoint(state, scalars(state), folder)) << "nothing is overwritten";
  EXPECT_EQ(std::distance(fs::directory_iterator(root_ + "/imported"), {}), 1);
}

// The kernel refuses bytes beyond the limit, as a full disk does.
TEST_F(CheckpointTest, AFullDiskIsAnErrorAndLeavesNoFile) {
  const model::State state = trained(tiny());
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 50000;
  setrlimit(RLIMIT_FSIZE, &small);
  const auto file = write_snapshot(take_snapshot(state, scalars(state), {1, 1}, 0, 1), root_);
  const auto whole = write_checkpoint(state, scalars(state), root_ + "/whole");
  setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kIo);
  EXPECT_THAT(file.error().message, HasSubstr(file_name(0, 1)));
  EXPECT_FALSE(fs::exists(root_ + "/.attempt-1-1-1200/" + file_name(0, 1)));
  ASSERT_FALSE(whole);
  EXPECT_FALSE(fs::exists(root_ + "/whole"));
  EXPECT_FALSE(fs::exists(root_ + "/.attempt-0-0-1200"));
}

}  // namespace
}  // namespace tessera::checkpoint
