// Runs and checkpoints on disk: found, listed, verified; damage is named.
#include <chrono>
#include <gtest/gtest.h>
#include <thread>

#include "common/sealed_json.h"
#include "common/digest.h"
#include "common/safetensors.h"
#include "ops/cli/chaos.h"
#include "ops/cli/checkpoint_files.h"
#include "ops/cli/ledger.h"
#include "ops/cli/preflight.h"
#include "ops/cli/run_folder.h"
#include "ops/cli/summary.h"
#include "tests/unit/ops/support.h"

namespace tessera::cli {
namespace {

using test::TempFolder;
using test::write_text;

// A checkpoint of two files and three tensors, one of them a frozen table, as the trainer writes them.
std::string make_checkpoint(const std::string& root, Step step) {
  char name[40];
  std::snprintf(name, sizeof name, "/step-%012lld", static_cast<long long>(step));
  const std::string folder = root + name;
  std::filesystem::create_directories(folder);
  const std::vector<float> weight{1, 2, 3, 4, 5, float(step)}, moment{0.5f, -0.5f}, table{9, 9};
  const std::vector<std::vector<TensorView>> files{{{"context_encoder.blocks.0.weight", "F32", {2, 3}, weight.data(), 24}, {"context_encoder.pos_embed", "F32", {2}, table.data(), 8}},
                                                   {{"optimizer.exp_avg.predictor.mask_token", "F32", {2}, moment.data(), 8}}};
  StateDigest digest = digest_scalar(7, lane_seeds("optimizer.step"));
  Json manifest{{"schema", 1}, {"step", step}, {"adam_steps", 7}, {"files", Json::array()}, {"tensors", Json::array()}};
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string file = "state-0000" + std::to_string(i) + "-of-00002.safetensors";
    const auto written = write_safetensors(folder + "/" + file, files[i], {});
    manifest["files"].push_back({{"file", file}, {"size_bytes", written->size_bytes}, {"hash", to_hex(written->hash)}});
    for (const TensorView& tensor : files[i]) {
      manifest["tensors"].push_back({{"name", tensor.name}, {"file", file}});
      if (!tensor.name.ends_with("pos_embed")) digest += digest_elements(static_cast<const float*>(tensor.data), tensor.count(), 0, lane_seeds(tensor.name));
    }
  }
  manifest["state_digest"] = to_hex(digest);
  write_text(folder + "/manifest.json", seal_json(manifest));
  return folder;
}

void flip_byte(const std::string& path, int64_t from_end) {
  std::string bytes = test::read_text(path);
  bytes[bytes.size() - size_t(from_end)] ^= 1;
  write_text(path, bytes);
}

TEST(Checkpoints, SoundOneIsVerified) {
  const TempFolder folder;
  const CheckpointInfo info = inspect_checkpoint(make_checkpoint(folder.path(), 12), Depth::kHashes);
  EXPECT_TRUE(info.ok) << info.reason;
  EXPECT_EQ(info.step, 12);
  EXPECT_GT(info.size_bytes, 40);
  EXPECT_EQ(to_hex(*compute_state_digest(info.path)), info.state_digest);
}

TEST(Checkpoints, AFlippedBitIsNamed) {
  const TempFolder folder;
  const std::string path = make_checkpoint(folder.path(), 12);
  flip_byte(path + "/state-00001-of-00002.safetensors", 3);
  EXPECT_TRUE(inspect_checkpoint(path, Depth::kManifest).ok);
  const CheckpointInfo info = inspect_checkpoint(path, Depth::kHashes);
  EXPECT_FALSE(info.ok);
  EXPECT_NE(info.reason.find("state-00001-of-00002.safetensors"), std::string::npos) << info.reason;
}

TEST(Checkpoints, TruncatedAndMissingFilesAreNamedWithoutReadingThem) {
  const TempFolder folder;
  const std::string path = make_checkpoint(folder.path(), 12), file = path + "/state-00000-of-00002.safetensors";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  EXPECT_NE(inspect_checkpoint(path, Depth::kManifest).reason.find("truncated"), std::string::npos);
  std::filesystem::remove(file);
  EXPECT_NE(inspect_checkpoint(path, Depth::kManifest).reason.find("missing"), std::string::npos);
}

TEST(Checkpoints, AManifestThatLiesIsFound) {
  const TempFolder folder;
  const std::string path = make_checkpoint(folder.path(), 12);
  Json manifest = Json::parse(test::read_text(path + "/manifest.json"));
  const std::string digest = manifest["state_digest"];
  manifest["state_digest"] = std::string(32, '0');
  write_text(path + "/manifest.json", seal_json(manifest));
  EXPECT_NE(inspect_checkpoint(path, Depth::kHashes).reason.find("digest"), std::string::npos);
  manifest["state_digest"] = digest;
  manifest["tensors"].push_back({{"name", "predictor.absent"}});
  write_text(path + "/manifest.json", seal_json(manifest));
  EXPECT_NE(inspect_checkpoint(path, Depth::kHashes).reason.find("predictor.absent"), std::string::npos);
}

TEST(Checkpoints, ManifestsOfAnyContentAreRefusedNotTrusted) {
  const TempFolder folder;
  const std::string path = make_checkpoint(folder.path(), 12);
  for (const char* text : {"", "{", "[]", "{}", R"({"schema":2})", R"({"schema":1,"step":"x","state_digest":"","files":[]})",
                           R"({"schema":1,"step":1,"state_digest":"00","files":[{"file":"../../secret","size_bytes":1,"hash":""}]})"}) {
    write_text(path + "/manifest.json", text);
    if (const Json manifest = Json::parse(text, nullptr, false); manifest.is_object()) write_text(path + "/manifest.json", seal_json(manifest));
    EXPECT_FALSE(inspect_checkpoint(path, Depth::kManifest).ok) << text;
  }
}

TEST(Checkpoints, NewestGoodOne) {
  const TempFolder run;
  make_checkpoint(run / "checkpoints", 10);
  const std::string last = make_checkpoint(run / "checkpoints", 20);
  EXPECT_EQ(newest_checkpoint(run.path()).step, 20);
  std::filesystem::remove(last + "/manifest.json");
  EXPECT_EQ(newest_checkpoint(run.path()).step, 10);
  EXPECT_EQ(checkpoint_folders(run.path())->size(), 2u);
  EXPECT_EQ(newest_checkpoint(run / "elsewhere").step, -1);
}

Json row(Step step, const std::string& batch, const std::string& state) { return {{"step", step}, {"batch_digest", batch}, {"state_digest", state}}; }

TEST(Ledger, WholeRun) {
  const LedgerReport report = check_ledger({row(0, "b0", "s0"), row(1, "b1", "s1"), row(1, "b1", "s1"), row(2, "b2", "s2")}, {}, 8, 2);
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.steps_committed, 3);
  EXPECT_EQ(report.samples_trained, 24);
  EXPECT_EQ(report.epochs_finished, 1);
}

TEST(Ledger, AMissingStepIsLost) {
  const LedgerReport report = check_ledger({row(0, "b0", "s0"), row(2, "b2", "s2")}, {}, 8, 0);
  EXPECT_FALSE(report.ok());
  EXPECT_EQ(report.lost, 8);
  EXPECT_EQ(report.samples_expected, 24);
}

TEST(Ledger, TwoBatchesOrTwoStatesOfAStepAreFound) {
  EXPECT_EQ(check_ledger({row(0, "b0", "s0"), row(0, "bX", "s0")}, {}, 8, 0).repeated, 8);
  EXPECT_EQ(check_ledger({row(0, "b0", "s0"), row(0, "b0", "sX")}, {}, 8, 0).digest_conflicts, 1);
  EXPECT_TRUE(check_ledger({row(0, "b0", "s0"), row(0, "b0", "sX")}, {}, 8, 0, 0, Promise::kSameBatches).ok()) << "function.reduction fast";
  EXPECT_FALSE(check_ledger({row(0, "b0", "s0"), row(0, "bX", "sX")}, {}, 8, 0, 0, Promise::kSameBatches).ok());
}

TEST(Ledger, ACheckpointThatDiffersIsFound) {
  CheckpointInfo checkpoint;
  checkpoint.step = 1;
  checkpoint.state_digest = "sX";
  EXPECT_EQ(check_ledger({row(0, "b0", "s0"), row(1, "b1", "s1")}, {checkpoint}, 8, 0).digest_conflicts, 1);
  checkpoint.state_digest = "s1";
  EXPECT_EQ(check_ledger({row(0, "b0", "s0"), row(1, "b1", "s1")}, {checkpoint}, 8, 0).digest_conflicts, 0);
}

TEST(RunFolder, FoundByNameFolderAndAddress) {
  const TempFolder runs;
  const std::string address = R"({"control":"127.0.0.1:1","http":"http://127.0.0.1:2","token":"t","run_id":"alpha","pid":1})";
  write_text(runs / "alpha/address.json", address);
  for (const std::string& word : {std::string("alpha"), runs / "alpha", runs / "alpha/", runs / "alpha/address.json"}) {
    const auto run = find_run(word, runs.path());
    ASSERT_TRUE(run) << run.error().message;
    EXPECT_EQ(run->url, "http://127.0.0.1:2") << word;
    EXPECT_EQ(run->token, "t");
  }
  const auto missing = find_run("alpah", runs.path());
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("did you mean alpha"), std::string::npos);
  EXPECT_EQ(find_run("http://head:8080/", runs.path())->url, "http://head:8080");
}

TEST(RunFolder, TheNewestIsTheDefault) {
  ::unsetenv("TESSERA_COORDINATOR");
  const TempFolder runs;
  EXPECT_EQ(exit_code_of(find_run("", runs.path()).error()), 64);
  std::filesystem::create_directories(runs / "old/checkpoints");
  std::filesystem::create_directories(runs / "new/checkpoints");
  std::filesystem::create_directories(runs / "no-run");
  std::filesystem::last_write_time(runs / "old", std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  EXPECT_EQ(find_run("", runs.path())->run_dir, runs / "new");
}

TEST(RunFolder, ADamagedAddressIsNamed) {
  const TempFolder runs;
  write_text(runs / "a/address.json", "{\"control\": 7");
  const auto run = find_run("a", runs.path());
  ASSERT_FALSE(run);
  EXPECT_NE(run.error().message.find("address.json"), std::string::npos);
}

TEST(RunFolder, ALineCutOffByACrashIsLeftOut) {
  const TempFolder folder;
  write_text(folder / "metrics.jsonl", "{\"step\":0}\n{\"step\":1}\n{\"ste");
  EXPECT_EQ(read_json_lines(folder / "metrics.jsonl").size(), 2u);
  EXPECT_TRUE(read_json_lines(folder / "absent.jsonl").empty());
}

TEST(Summary, TheFinalDigestIsTheCheckpoints) {
  const TempFolder run;
  make_checkpoint(run / "checkpoints", 20);
  const Json status = Json::parse(R"({"run":{"generations":3},"progress":{"step":20,"total_steps":20},"training":{"loss":0.5},"digests":{"state_digest":"of step 19","batch_digest":"chain"}})");
  const Json summary = summarise("a", run.path(), status, 1.5, nullptr);
  EXPECT_EQ(summary["state_digest"], newest_checkpoint(run.path()).state_digest);
  EXPECT_EQ(summary["batch_digest"], "chain");
  EXPECT_EQ(summary["generations"], 3);
  EXPECT_EQ(summary["checkpoints"].size(), 1u);
  for (const char* field : {"run_id", "run_dir", "status_url", "step", "total_steps", "loss", "images_per_second", "seconds", "evaluation"}) EXPECT_TRUE(summary.contains(field)) << field;
  EXPECT_FALSE(summary_text(summary).empty());
}

Json step_row(int64_t step, double time, const std::string& generation) { return {{"step", step}, {"time", time}, {"generation", generation}}; }

// A trainer's fault is over with the first step of a later generation; a loader's costs the longest wait behind it.
TEST(Chaos, JudgesFaultsByTheLedger) {
  const std::vector<Json> rows{step_row(0, 10.0, "1.1"), step_row(1, 10.1, "1.1"), step_row(2, 10.2, "1.1"), step_row(3, 10.9, "1.2"), step_row(4, 11.0, "1.2"), step_row(5, 11.4, "1.2"), step_row(6, 11.5, "1.2")};
  const std::vector<Json> events{{{"time", 10.3}, {"text", "generation 1.2: 1 workers from step 1: no survivor holds the state: checkpoint 1"}}, {{"time", 9.0}, {"text", "generation 1.1: 2 workers from step 0: from the initial state"}}};
  const ChaosReport report = judge({{10.15, "trainer", 1}, {11.05, "loader", 2}, {11.6, "trainer", 3}}, rows, events, 0.1);
  ASSERT_EQ(report.recovery_seconds.size(), 1u) << "after the last step nothing was to recover";
  EXPECT_NEAR(report.recovery_seconds[0], 0.75, 1e-9);
  ASSERT_EQ(report.stall_seconds.size(), 1u);
  EXPECT_NEAR(report.stall_seconds[0], 0.35, 1e-9);
  EXPECT_NEAR(report.goodput, 6 * 0.1 / 1.5, 1e-9);
  EXPECT_EQ(report.steps_lost, 2) << "steps 1 and 2 were committed before the world of step 1 began";
  EXPECT_NEAR(median_step_seconds(rows), 0.1, 1e-9);
  EXPECT_EQ(judge({}, {}, {}, 0.1).goodput, 0);
}

TEST(Ledger, BeginsWithTheRootOfAnImportedLineage) {
  const auto row = [](int64_t step) { return Json{{"step", step}, {"batch_digest", "b" + std::to_string(step)}, {"state_digest", "s" + std::to_string(step)}}; };
  const LedgerReport report = check_ledger({row(5), row(6), row(7)}, {}, 8, 5, 5);
  EXPECT_TRUE(report.ok());
  EXPECT_EQ(report.steps_committed, 3);
  EXPECT_EQ(report.samples_expected, 24);
  EXPECT_EQ(check_ledger({row(5), row(7)}, {}, 8, 5, 5).lost, 8);
}

TEST(Preflight, GpusAreCountedAndTooFewAreRefused) {
  TempFolder dev;
  for (const char* name : {"nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "null"}) write_text(dev.path() + "/" + name, "");
  EXPECT_EQ(count_gpus(dev.path()), 2);
  EXPECT_EQ(count_gpus(dev.path() + "/none"), 0);
  OperationConfig operation;
  operation.workers = 2;
  EXPECT_TRUE(check_devices(operation, 0));
  operation.device = "cuda";
  EXPECT_TRUE(check_devices(operation, 2));
  EXPECT_EQ(check_devices(operation, 0).error().code, ErrorCode::kFixConfig);
  EXPECT_NE(check_devices(operation, 0).error().message.find("no NVIDIA GPU"), std::string::npos);
  EXPECT_NE(check_devices(operation, 1).error().message.find("operation.workers: 1"), std::string::npos);
}

}  // namespace
}  // namespace tessera::cli
