// Exports read again: the same bits; and files that do not fit, each with its sentence.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/unit/model/small_model.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/import/hugging_face.h"
#include "worker/import/open_model.h"
#include "worker/import/published.h"
#include "worker/model/io/export.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

class RoundTrip : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("tessera-" + std::to_string(getpid()) + "-" + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    function_ = test::small_function();
    function_.masks.mode = "reference";
    function_.masks.min_keep = 0;
    state_ = model::State::initial(function_);
    state_.step = 12, state_.adam_steps = 12;
    for (auto& b : state_.target)
      if (b.defined()) b.mul_(0.5);
    for (size_t i = 0; i < state_.exp_avg.size(); ++i) state_.exp_avg[i].copy_(state_.weights[i] * 0.25), state_.exp_avg_sq[i].copy_(state_.weights[i].square());
  }
  void TearDown() override { fs::remove_all(folder_); }
  model::ExportTo to(const std::string& name) const { return {(folder_ / name).string(), model::Existing::kRefuse}; }
  std::string export_pth(const std::string& name, int64_t steps_per_epoch = 4) {
    const auto out = model::export_pth(function_, state_, {{}, steps_per_epoch}, to(name));
    EXPECT_TRUE(out) << (out ? "" : out.error().message);
    return (folder_ / name / "model.pth.tar").string();
  }
  void expect_error(const Result<import::Published>& result, const std::vector<std::string>& words) {
    ASSERT_FALSE(result);
    for (const auto& word : words) EXPECT_NE(result.error().message.find(word), std::string::npos) << result.error().message;
  }

  fs::path folder_;
  FunctionConfig function_;
  model::State state_;
};

TEST_F(RoundTrip, PublishedLayout) {
  const std::string path = export_pth("a");
  const auto read = import::read_published(path, {{}, 3, 0, true});
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->state.digest(), state_.digest());
  EXPECT_EQ(read->epoch, 3);
  EXPECT_EQ(read->state.step, 12);
  EXPECT_EQ(read->function.model.image_size, 48);
  EXPECT_EQ(read->function.predictor.depth, 2);
  const auto twice = import::read_published(path, {{}, 3, 7, true});  // skipped updates: fewer than steps
  ASSERT_TRUE(twice);
  EXPECT_EQ(twice->state.step, 21);
  EXPECT_EQ(twice->state.adam_steps, 12);
}

TEST_F(RoundTrip, HuggingFace) {
  for (const auto encoder : {model::Encoder::kTarget, model::Encoder::kContext}) {
    const std::string name = encoder == model::Encoder::kTarget ? "target" : "context";
    const auto out = model::export_hugging_face(function_, state_, encoder, to(name));
    ASSERT_TRUE(out) << out.error().message;
    EXPECT_EQ(out->tensors, 5 + 16 * 2);
    const auto read = import::open_model((folder_ / name).string());
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->kind, import::ModelKind::kHuggingFace);
    const auto& source = encoder == model::Encoder::kTarget ? state_.target : state_.weights;
    for (const auto& place : state_.layout.tensors)
      if (place.network == model::Network::kContextEncoder) {
        const auto& there = *read->state.layout.find(place.name);
        EXPECT_TRUE(read->state.view(read->state.weights, there).equal(state_.view(source, place))) << place.name;
        EXPECT_TRUE(read->state.view(read->state.target, there).equal(state_.view(source, place))) << place.name;
      }
  }
}

TEST_F(RoundTrip, Safetensors) {
  const auto out = model::export_safetensors(function_, state_, model::Encoder::kTarget, to("st"));
  ASSERT_TRUE(out) << out.error().message;
  const auto file = SafetensorsFile::open(out->files[0]);
  ASSERT_TRUE(file);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->find("pos_embed")->shape, (std::vector<int64_t>{1, 36, 48}));
  const auto& place = *state_.layout.find("context_encoder.blocks.1.attn.qkv.weight");
  EXPECT_EQ(std::memcmp(file->find("blocks.1.attn.qkv.weight")->data, state_.view(state_.target, place).const_data_ptr<float>(), size_t(place.count) * 4), 0);
}

TEST_F(RoundTrip, CheckpointAndRun) {
  checkpoint::Scalars scalars;
  scalars.step = 12, scalars.adam_steps = 12, scalars.lineage = "l", scalars.function_yaml = print_function(function_), scalars.function_id = to_hex(function_id(function_));
  scalars.numerics_class = "test", scalars.state_digest = state_.digest();
  fs::create_directories(folder_ / "run" / "checkpoints");
  const std::string checkpoint = (folder_ / "run" / "checkpoints" / "step-000000000012").string();
  const auto written = checkpoint::write_checkpoint(state_, scalars, checkpoint);
  ASSERT_TRUE(written) << written.error().message;
  for (const auto& path : {checkpoint, (folder_ / "run").string(), (folder_ / "run" / "checkpoints").string()}) {
    const auto opened = import::open_model(path);
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_EQ(opened->path, checkpoint);
    EXPECT_EQ(opened->state.digest(), state_.digest());
  }
}

TEST_F(RoundTrip, ExportsRefuseWhatIsThere) {
  ASSERT_TRUE(model::export_safetensors(function_, state_, model::Encoder::kTarget, to("a")));
  const auto again = model::export_safetensors(function_, state_, model::Encoder::kTarget, to("a"));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, ErrorCode::kUsage);
  EXPECT_TRUE(model::export_safetensors(function_, state_, model::Encoder::kTarget, {(folder_ / "a").string(), model::Existing::kReplace}));
}

TEST_F(RoundTrip, AnUnwritablePathIsAnIoError) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / "file") << "x";
  for (const auto& out : {model::export_safetensors(function_, state_, model::Encoder::kTarget, to("file/below")), model::export_pth(function_, state_, {}, to("file/below")),
                          model::export_hugging_face(function_, state_, model::Encoder::kTarget, to("file/below"))}) {
    ASSERT_FALSE(out);
    EXPECT_EQ(out.error().code, ErrorCode::kIo);
    EXPECT_NE(out.error().message.find("file/below"), std::string::npos) << out.error().message;
  }
}

TEST_F(RoundTrip, FilesThatDoNotFitTheConfiguration) {
  const std::string path = export_pth("a");
  const auto with = [&](auto change) {
    import::PublishedOptions options{function_, 0, 0, true};
    change(*options.function);
    return import::read_published(path, options);
  };
  ASSERT_TRUE(with([](FunctionConfig&) {}));
  expect_error(with([](FunctionConfig& f) { f.model.patch_size = 16, f.model.image_size = 96; }), {"patch_embed.proj.weight", "[48, 3, 8, 8]", "[48, 3, 16, 16]"});
  expect_error(with([](FunctionConfig& f) { f.model.image_size = 64; }), {"pos_embed", "[1, 36, 48]", "[1, 64, 48]"});
  expect_error(with([](FunctionConfig& f) { f.model.depth = 3; }), {"encoder.blocks.2.norm1.weight is missing"});
  expect_error(with([](FunctionConfig& f) { f.model.depth = 1; }), {"encoder.blocks.1.", "no place"});
  expect_error(with([](FunctionConfig& f) { f.predictor.embed_dim = 24; }), {"predictor.", "[1, 1, 36]", "[1, 1, 24]"});
  expect_error(import::read_published(path, {{}, 0, 0, true}), {"--heads"});
  expect_error(import::read_published(path, {{}, 5, 0, true}), {"--heads 5"});
}

TEST_F(RoundTrip, NanIsNamed) {
  const auto& place = *state_.layout.find("context_encoder.blocks.1.mlp.fc1.weight");
  state_.weights[size_t(place.bucket)].mutable_data_ptr<float>()[place.offset + 17] = std::nanf("");
  expect_error(import::read_published(export_pth("a"), {{}, 3, 0, true}), {"encoder.blocks.1.mlp.fc1.weight", "element 17", "nan"});
}

TEST_F(RoundTrip, ATruncatedFileIsNamed) {
  const std::string path = export_pth("a");
  fs::resize_file(path, fs::file_size(path) / 2);
  expect_error(import::read_published(path, {{}, 3, 0, true}), {"truncated", path});
}

TEST_F(RoundTrip, HuggingFaceFoldersOfOtherModels) {
  ASSERT_TRUE(model::export_hugging_face(function_, state_, model::Encoder::kTarget, to("hf")));
  const fs::path config = folder_ / "hf" / "config.json";
  nlohmann::json good;
  std::ifstream(config) >> good;
  const auto error_with = [&](const std::string& key, const nlohmann::json& value) {
    nlohmann::json changed = good;
    changed[key] = value;
    std::ofstream(config) << changed.dump();
    const auto read = import::read_hugging_face((folder_ / "hf").string());
    return read ? std::string("accepted") : read.error().message;
  };
  const auto has = [](const std::string& message, const std::string& words) { EXPECT_NE(message.find(words), std::string::npos) << message; };
  has(error_with("model_type", "vit"), "model_type is vit, an I-JEPA folder has ijepa");
  has(error_with("layer_norm_eps", 1e-12), "layer_norm_eps is 1e-12");
  has(error_with("hidden_act", "gelu_new"), "hidden_act is gelu_new");
  has(error_with("patch_size", 16), "position_embeddings is [1, 36, 48], config.json needs [1, 9, 48]");
  has(error_with("num_hidden_layers", 3), "encoder.layer.2.layernorm_before.weight is missing");
  has(error_with("hidden_size", "wide"), "wrong kind");
  has(error_with("num_attention_heads", 5), "do not fit together");
  EXPECT_EQ(error_with("initializer_range", 0.02), "accepted");
}

TEST_F(RoundTrip, PathsThatHoldNoModel) {
  fs::create_directories(folder_ / "empty");
  for (const auto& path : {folder_ / "empty", folder_ / "missing"}) {
    const auto opened = import::open_model(path.string());
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, ErrorCode::kUsage);
    EXPECT_NE(opened.error().message.find(path.string()), std::string::npos);
  }
}

}  // namespace
}  // namespace tessera
