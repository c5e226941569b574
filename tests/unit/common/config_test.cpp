#include "common/config.h"

#include <gtest/gtest.h>

#include <fstream>

#include "common/config_schema.h"
#include "scratch.h"

namespace tessera {
namespace {

const char* const kYaml = R"(function:
  seed: 3
  model: {name: vit_small, patch_size: 8, image_size: 96}
  batch: {tile_size: 16, tiles: 2}
operation:
  workers: 4
  host_prefetch_bytes: 1GiB
)";

Config parsed(const std::string& text, const std::vector<std::string>& overrides = {}, const std::vector<std::string>& environment = {}) {
  auto config = parse_config(text, "a.yaml", overrides, environment);
  EXPECT_TRUE(config) << (config ? "" : config.error().message);
  return config ? *config : Config{};
}
std::string refused(const std::string& text, const std::vector<std::string>& overrides = {}, const std::vector<std::string>& environment = {}, ErrorCode code = ErrorCode::kFixConfig) {
  const auto config = parse_config(text, "a.yaml", overrides, environment);
  EXPECT_FALSE(config) << text;
  if (config) return "";
  EXPECT_EQ(config.error().code, code) << config.error().message;
  return config.error().message;
}
void expect_has(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
}

TEST(Config, ReadsValuesFillsSizesByNameAndKeepsOrigins) {
  const Config config = parsed(kYaml);
  EXPECT_EQ(config.function.seed, 3);
  EXPECT_EQ(config.function.model.embed_dim, 384);
  EXPECT_EQ(config.function.model.num_heads, 6);
  EXPECT_EQ(config.function.predictor.num_heads, 6);
  EXPECT_EQ(config.operation.workers, 4);
  EXPECT_EQ(config.operation.host_prefetch_bytes, int64_t{1} << 30);
  EXPECT_EQ(config.origins.at("function.seed"), "a.yaml:2");
  EXPECT_EQ(config.origins.at("operation.workers"), "a.yaml:6");
  EXPECT_EQ(config.origins.at("function.epochs"), "default");
}

TEST(Config, EnvironmentBeatsTheFileAndSetBeatsBoth) {
  const std::vector<std::string> environment{"TESSERA_FUNCTION__SEED=5", "TESSERA_OPERATION__HTTP__PORT=8080", "TESSERA_COORDINATOR=x", "PATH=/bin"};
  Config config = parsed(kYaml, {}, environment);
  EXPECT_EQ(config.function.seed, 5);
  EXPECT_EQ(config.operation.http.port, 8080);
  EXPECT_EQ(config.origins.at("function.seed"), "environment TESSERA_FUNCTION__SEED");
  config = parsed(kYaml, {"function.seed=1", "function.seed=7", "function.masks.target_scale=[0.1, 0.3]"}, environment);
  EXPECT_EQ(config.function.seed, 7);
  EXPECT_EQ(config.origins.at("function.seed"), "--set");
  EXPECT_EQ(config.function.masks.target_scale, (Pair{0.1, 0.3}));
}

TEST(Config, UnknownKeysAreRefusedWithTheNearestName) {
  expect_has(refused("function:\n  sed: 1\n"), {"a.yaml:2", "function.sed", "did you mean function.seed?"});
  expect_has(refused("function:\n  optimiser: {lr: 1}\n"), {"function.optimizer.lr"});
  expect_has(refused("function: {tile_size: 4}\n"), {"did you mean function.batch.tile_size?"});
  expect_has(refused("", {"operation.worker=3"}), {"--set", "operation.workers"});
  expect_has(refused("", {}, {"TESSERA_FUNCTION__SEEED=1"}), {"environment TESSERA_FUNCTION__SEEED", "function.seed"});
  expect_has(refused("quux: 1\n"), {"there is no key quux"});
  const std::string far = refused("zzzzzzzzzzzz: 1\n");
  EXPECT_EQ(far.find("did you mean"), std::string::npos) << far;
}

TEST(Config, WrongTypesAndRangesNameKeyOriginAndValue) {
  expect_has(refused("function:\n  seed: abc\n"), {"function.seed", "a.yaml:2", "'abc'", "a whole number"});
  expect_has(refused("function: {seed: 1.5}\n"), {"whole number"});
  expect_has(refused("function: {seed: [1]}\n"), {"whole number"});
  expect_has(refused("function: {data: {horizontal_flip: 3}}\n"), {"true or false"});
  expect_has(refused("function: {optimizer: {ema: 0.9}}\n"), {"two numbers"});
  expect_has(refused("function: {optimizer: {lr: .nan}}\n"), {"function.optimizer.lr"});
  expect_has(refused("operation: {host_prefetch_bytes: many}\n"), {"256MiB"});
  expect_has(refused("operation: {http: {port: 70000}}\n"), {"70000", "[0, 65535]"});
  expect_has(refused("function: {masks: {mode: uniforn}}\n"), {"uniforn", "uniform, reference", "did you mean uniform?"});
  expect_has(refused("function: {optimizer: {betas: [0.9, 1.0]}}\n"), {"function.optimizer.betas"});
  expect_has(refused("", {"function.seed"}, {}, ErrorCode::kUsage), {"--set function.seed=1"});
  expect_has(refused("", {"function.model={a: 1}"}), {"a single value"});
  // The first of two mistakes in the file is no reason to call known keys unknown.
  expect_has(refused("function:\n  seed: abc\n  epochs: 3\noperation: {workers: 2}\n"), {"function.seed", "a whole number"});
}

TEST(Config, CrossFieldRulesNameTheFix) {
  expect_has(refused("", {"function.model.image_size=100"}), {"image_size 100", "96"});
  expect_has(refused("", {"function.model.name=custom"}), {"embed_dim"});
  expect_has(refused("", {"function.predictor.embed_dim=100"}), {"num_heads"});
  expect_has(refused("", {"function.batch.tiles=3", "function.batch.tiles_per_mask_group=2"}), {"tiles 3"});
  expect_has(refused("", {"function.data.crop_scale=[1.0, 0.3]"}), {"[low, high]"});
  expect_has(refused("", {"function.steps=10", "function.warmup_steps=11"}), {"warmup_steps 11"});
  expect_has(refused("", {"function.data.manifest_digest=abc"}), {"32 hex digits"});
  expect_has(refused("", {"function.model.image_size=96"}), {"grid 6x6", "min_keep"});
}

TEST(Config, BadYamlNeverThrows) {
  for (const char* text : {"function: [", "function:\n\tseed: 1", "- 1", "just text", "{[a, b]: 1}", "function: {{a: 1}: 2}", "? {x: 1}\n: 2", "&a {function: *a}", "*nobody", "function: 3", "%YAML 9.9\n---\n{",
                           "function: {seed: 1}\nfunction: {seed: 2}"}) {
    const auto config = parse_config(text, "a.yaml", {});
    ASSERT_FALSE(config) << text;
    EXPECT_EQ(config.error().code, ErrorCode::kFixConfig);
    EXPECT_NE(config.error().message.find("a.yaml"), std::string::npos) << config.error().message;
  }
  EXPECT_TRUE(parse_config("", "a.yaml", {}));
}

TEST(Config, PrintedPartsReadBack) {
  const Config config = parsed(kYaml, {"operation.data_path=\"it's: a \\\"path\\\" # here\"", "function.optimizer.lr=0.1234567890123", "operation.run_id=\"123\""});
  const auto function = parse_function(print_function(config.function));
  ASSERT_TRUE(function) << function.error().message;
  EXPECT_EQ(print_function(*function), print_function(config.function));
  EXPECT_EQ(function_id(*function), function_id(config.function));
  EXPECT_EQ(function->optimizer.lr, config.function.optimizer.lr);
  const auto operation = parse_operation(print_operation(config.operation));
  ASSERT_TRUE(operation) << operation.error().message;
  EXPECT_EQ(config.operation.data_path, "it's: a \"path\" # here");
  EXPECT_EQ(operation->data_path, config.operation.data_path);
  EXPECT_EQ(operation->run_id, "123");
  EXPECT_EQ(print_operation(*operation), print_operation(config.operation));
  const auto resolved = parse_config(print_resolved(config), "config.yaml", {});
  ASSERT_TRUE(resolved) << resolved.error().message;
  EXPECT_EQ(function_id(resolved->function), function_id(config.function));
  expect_has(print_resolved(config), {"# a.yaml:2", "# --set", "# default", "# function_id: "});
}

// Every function key decides the id, no operation key does.
TEST(Config, FunctionIdCoversEveryFunctionKey) {
  const Config config = parsed(kYaml);
  const Hash128 id = function_id(config.function);
  int keys = 0;
  visit_function(const_cast<FunctionConfig&>(config.function), [&](const FieldInfo& info, auto& value) {
    const auto before = value;
    using T = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<T, std::string>) value += "x";
    else if constexpr (std::is_same_v<T, bool>) value = !value;
    else if constexpr (std::is_arithmetic_v<T>) value += 1;
    else value.back() += 1;
    EXPECT_NE(function_id(config.function), id) << info.key;
    value = before;
    ++keys;
  });
  EXPECT_GT(keys, 40);
  EXPECT_EQ(function_id(parsed(kYaml, {"operation.workers=9", "operation.data_path=elsewhere"}).function), id);
}

// Of kYaml before there were late keys: the run goes on under a newer version.
TEST(Config, LateKeysAtTheirDefaultLeaveTheFunctionIdAlone) {
  EXPECT_EQ(to_hex(function_id(parsed(kYaml).function)), "cbade86198ea4b0b2db1e62f50d346bb");
  EXPECT_NE(to_hex(function_id(parsed(kYaml, {"function.precision=bf16", "function.target_precision=fp8"}).function)),
            to_hex(function_id(parsed(kYaml, {"function.precision=bf16"}).function)));
}

TEST(Config, Fp8TargetsWantHalves) {
  expect_has(refused(kYaml, {"function.target_precision=fp8"}), {"function.target_precision", "function.precision: bf16"});
  EXPECT_EQ(parsed(kYaml, {"function.target_precision=fp8", "function.precision=published"}).function.target_precision, "fp8");
}

TEST(Config, LoadsAFileByItsName) {
  const test::Scratch folder;
  std::ofstream(folder / "mine.yaml") << kYaml;
  const auto config = load_config(folder / "mine.yaml", {});
  ASSERT_TRUE(config);
  EXPECT_EQ(config->source_name, "mine");
  for (const std::string& path : {folder / "none.yaml", folder.path()}) {
    const auto missing = load_config(path, {});
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code, ErrorCode::kFixConfig);
    expect_has(missing.error().message, {path.c_str()});
  }
}

TEST(Config, RunLength) {
  FunctionConfig function = parsed(kYaml).function;  // 32 images a step
  function.epochs = 3;
  function.optimizer.warmup_epochs = 0.5;
  auto length = run_length(function, 100);
  ASSERT_TRUE(length);
  EXPECT_EQ(length->steps_per_epoch, 3);
  EXPECT_EQ(length->total_steps, 9);
  EXPECT_EQ(length->warmup_steps, 1);
  function.steps = 7, function.warmup_steps = 2;
  EXPECT_EQ(run_length(function, 100)->total_steps, 7);
  EXPECT_EQ(run_length(function, 100)->warmup_steps, 2);
  const auto few = run_length(function, 31);
  ASSERT_FALSE(few);
  expect_has(few.error().message, {"31 samples", "32"});
}

TEST(Config, Bytes) {
  EXPECT_EQ(parse_bytes("4096").value(), 4096);
  EXPECT_EQ(parse_bytes("256MiB").value(), 256ll << 20);
  EXPECT_EQ(parse_bytes("1.5 GB").value(), 1500000000);
  for (const char* wrong : {"", "MiB", "-1", "12 parsecs", "1e300", "nan"}) EXPECT_FALSE(parse_bytes(wrong)) << wrong;
}

TEST(Config, NearestWord) {
  EXPECT_EQ(nearest_word("epochz", {"steps", "epochs"}), "epochs");
  EXPECT_EQ(nearest_word("quite-another", {"steps", "epochs"}), "");
  EXPECT_EQ(nearest_word("", {"steps"}), "");
}

TEST(Config, ReferenceListsEveryKey) {
  const std::string page = configuration_reference();
  OperationConfig operation;
  visit_operation(operation, [&](const FieldInfo& info, const auto&) {
    EXPECT_NE(page.find(std::string("`") + info.key + "`"), std::string::npos) << info.key;
    EXPECT_GT(std::string(info.meaning).size(), 8u) << info.key;
  });
}

}  // namespace
}  // namespace tessera
