// What the command says: progress, pages, tables, sizes; the imported recipe; the configurations that are shipped.
#include <filesystem>
#include <gtest/gtest.h>
#include <regex>

#include "common/config.h"
#include "ops/cli/explain.h"
#include "ops/cli/progress.h"
#include "ops/cli/recipe_import.h"
#include "tests/unit/ops/support.h"

namespace tessera::cli {
namespace {

const char* kStatus = R"({"schema":1,"run":{"id":"a","state":"RUNNING","reason":"2 workers","generation":"1.2"},"progress":{"step":312,"total_steps":1400,"epoch":2,
  "images_seen":19968,"eta_seconds":115},"training":{"loss":0.03124},"throughput":{"images_per_second":610.4},"workers":[{"id":"n/0","rank":0,"state":"RUNNING","reason":"","device":"cpu","memory_bytes":1}],
  "loaders":[],"checkpoint":{"last_step":200,"age_seconds":12,"bytes":1000},"alerts":[{"severity":"warning","reason":"disk is nearly full"}]})";

TEST(Progress, RunningLine) { EXPECT_EQ(status_line(Json::parse(kStatus)), "step 312/1,400 (22 %)  loss 0.0312  610 images/s  ETA 1 min 55 s"); }

TEST(Progress, OtherStatesSayTheirReason) {
  Json status = Json::parse(kStatus);
  status["run"]["state"] = "RECOVERING";
  status["run"]["reason"] = "1 of 2 workers ready: waiting for n/1";
  EXPECT_EQ(status_line(status), "RECOVERING: 1 of 2 workers ready: waiting for n/1  step 312/1,400 (22 %)");
}

TEST(Progress, AnyShapeOfDocumentIsSurvived) {
  for (const char* text : {"{}", "null", "[]", R"({"run":null,"progress":{"step":null,"total_steps":0},"training":{"loss":null}})", R"({"run":{"state":"RUNNING"},"workers":[null,1],"alerts":7})", R"({"run":{"placement_independent":null}})", R"({"run":[1]})"}) {
    EXPECT_FALSE(status_line(Json::parse(text)).empty()) << text;
    EXPECT_FALSE(status_page(Json::parse(text)).empty()) << text;
  }
}

TEST(Progress, PageNamesWorkersCheckpointAndAlerts) {
  const std::string page = status_page(Json::parse(kStatus));
  for (const char* part : {"run a  RUNNING: 2 workers", "worker n/0", "rank 0", "checkpoint of step 200", "warning: disk is nearly full", "generation 1.2"})
    EXPECT_NE(page.find(part), std::string::npos) << part << "\n" << page;
}

TEST(Progress, EvaluationTable) {
  const std::string table = evaluation_table(Json::parse(R"({"probes":{"class":{"metric":"accuracy","value":0.251,"standard_error":0.0097,"baselines":{"random_init":{"value":0.195},"pixels":0.17},"above_baselines":{"pixels":{"value":0.081,"standard_error":0.0102}}}}})"));
  for (const char* part : {"class", "25.1 %", "1.0 %", "19.5 % ", "17.0 % (+8.1 +- 1.0)"}) EXPECT_NE(table.find(part), std::string::npos) << part << "\n" << table;
}

TEST(Output, Durations) {
  EXPECT_EQ(human_seconds(8.24), "8.2 s");
  EXPECT_EQ(human_seconds(9.97), "10 s");
  EXPECT_EQ(human_seconds(59.6), "1 min 00 s");
  EXPECT_EQ(human_seconds(11520), "3 h 12 min");
  EXPECT_EQ(human_seconds(-1), "unknown");
}

TEST(Output, Counts) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1000), "1,000");
  EXPECT_EQ(human_count(-1234567), "-1,234,567");
}

const char* kPublished = R"(data: {batch_size: 128, color_jitter_strength: 0.0, crop_scale: [0.3, 1.0], crop_size: 224, image_folder: imagenet_full_size/061417/, num_workers: 10, pin_mem: true,
  root_path: $root, use_color_distortion: false, use_gaussian_blur: false, use_horizontal_flip: false}
logging: {folder: logs/, write_tag: jepa}
mask: {allow_overlap: false, aspect_ratio: [0.75, 1.5], enc_mask_scale: [0.85, 1.0], min_keep: 10, num_enc_masks: 1, num_pred_masks: 4, patch_size: 14, pred_mask_scale: [0.15, 0.2]}
meta: {copy_data: false, load_checkpoint: false, model_name: vit_huge, pred_depth: 12, pred_emb_dim: 384, read_checkpoint: null, use_bfloat16: true}
optimization: {ema: [0.996, 1.0], epochs: 300, final_lr: 1.0e-06, final_weight_decay: 0.4, ipe_scale: 1.0, lr: 0.001, start_lr: 0.0002, warmup: 40, weight_decay: 0.04}
)";

TEST(Import, PublishedRecipeIsTheShippedConfiguration) {
  const auto recipe = import_recipe(kPublished, "published.yaml");
  ASSERT_TRUE(recipe) << recipe.error().message;
  const auto imported = parse_config(recipe->yaml, "imported", {});
  ASSERT_TRUE(imported) << imported.error().message << "\n" << recipe->yaml;
  const auto shipped = load_config("configs/in1k_vith14_ep300.yaml", {});
  ASSERT_TRUE(shipped) << shipped.error().message;
  EXPECT_EQ(print_function(imported->function), print_function(shipped->function));
  EXPECT_EQ(imported->operation.data_path, "$root/imagenet_full_size/061417/train");
}

TEST(Import, EveryKeyWithoutMeaningGetsOneLine) {
  const auto recipe = import_recipe(std::string(kPublished) + "extra: {surprise: 7}\n", "published.yaml");
  ASSERT_TRUE(recipe);
  for (const char* key : {"data.num_workers", "data.pin_mem", "meta.copy_data", "meta.load_checkpoint", "meta.read_checkpoint", "logging.folder", "logging.write_tag", "data.batch_size", "extra.surprise"}) {
    int count = 0;
    for (const std::string& note : recipe->notes) count += note.starts_with(std::string(key) + ":");
    EXPECT_EQ(count, 1) << key;
  }
}

TEST(Import, DevicesAreTiles) {
  const auto recipe = import_recipe(kPublished, "p.yaml", 3);
  ASSERT_TRUE(recipe);
  EXPECT_EQ(parse_config(recipe->yaml, "p", {})->function.batch.global(), 3 * 128);
}

TEST(Import, WhatIsNotBuiltIsRefusedByName) {
  std::string text = kPublished;
  text.replace(text.find("use_gaussian_blur: false"), 24, "use_gaussian_blur: true ");
  const auto recipe = import_recipe(text, "p.yaml");
  ASSERT_FALSE(recipe);
  EXPECT_EQ(exit_code_of(recipe.error()), 78);
  EXPECT_NE(recipe.error().message.find("use_gaussian_blur"), std::string::npos);
  for (const char* bad : {"", "[1, 2]", "data: 3", "data: {crop_size: [}", "data: {crop_size: 224}"}) EXPECT_FALSE(import_recipe(bad, "p.yaml")) << bad;
}

TEST(Configs, EachShippedOneIsSound) {
  int seen = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator("configs")) {
    if (entry.is_directory()) continue;
    const auto config = load_config(entry.path().string(), {});
    ASSERT_TRUE(config) << config.error().message;
    const auto facts = explain(*config, 1281167, 1000);
    ASSERT_TRUE(facts) << facts.error().message;
    EXPECT_GT((*facts)["steps"], 0) << entry.path();
    EXPECT_NE(explain_text(*facts).find("FLOP"), std::string::npos);
    ++seen;
  }
  EXPECT_GE(seen, 14);
}

TEST(Explain, TooFewSamplesAreRefused) {
  const auto config = load_config("configs/vitb16_ep600.yaml", {});
  ASSERT_TRUE(config);
  const auto facts = explain(*config, 2047, 0);
  ASSERT_FALSE(facts);
  EXPECT_NE(facts.error().message.find("2047"), std::string::npos);
}

TEST(Docs, ConfigurationPageIsTheSchemas) {
  EXPECT_EQ(test::read_text("docs/configuration.md"), configuration_reference()) << "run: tessera config reference > docs/configuration.md";
}

std::vector<std::smatch> matches(const std::string& text, const std::regex& form) {
  return {std::sregex_iterator(text.begin(), text.end(), form), std::sregex_iterator()};
}

std::vector<std::string> pages() {
  std::vector<std::string> out{"README.md"};
  for (const auto& entry : std::filesystem::recursive_directory_iterator("docs"))
    if (entry.path().extension() == ".md") out.push_back(entry.path().string());
  return out;
}

TEST(Docs, EveryLinkLeadsSomewhere) {
  int seen = 0;
  for (const std::string& page : pages()) {
    const std::string text = test::read_text(page);
    for (const std::smatch& link : matches(text, std::regex(R"(\]\(([^)#]+)\))"))) {
      const std::string target = link[1];
      if (target.starts_with("http") || target == "docs/images/status.png") continue;  // the screenshot is made by the page's test
      EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(page).parent_path() / target)) << page << " links to " << target;
      ++seen;
    }
  }
  EXPECT_GT(seen, 10);
}

TEST(Docs, TheReadingOrderIsThere) {
  const std::string text = test::read_text("README.md");
  const auto headers = matches(text, std::regex(R"(\n\d\. `([a-z_/]+\.h)`)"));
  EXPECT_EQ(headers.size(), 8u);
  for (const std::smatch& header : headers) EXPECT_TRUE(std::filesystem::exists(header[1].str())) << header[1];
}

TEST(Docs, TheFailureModelNamesTestsThatExist) {
  std::string tests;
  for (const auto& entry : std::filesystem::recursive_directory_iterator("tests"))
    if (entry.path().extension() == ".cpp" || entry.path().extension() == ".py") tests += test::read_text(entry.path().string());
  const std::string page = test::read_text("docs/failure-model.md");
  const auto cases = matches(page, std::regex(R"(`([A-Z]\w+)\.([A-Z]\w+)`)")), stories = matches(page, std::regex(R"(\.py: (test_\w+)`)"));
  EXPECT_GT(cases.size(), 10u);
  EXPECT_GT(stories.size(), 5u);
  for (const std::smatch& name : cases) EXPECT_NE(tests.find("(" + name[1].str() + ", " + name[2].str() + ")"), std::string::npos) << name[0];
  for (const std::smatch& name : stories) EXPECT_NE(tests.find("def " + name[1].str() + "("), std::string::npos) << name[0];
}

}  // namespace
}  // namespace tessera::cli
