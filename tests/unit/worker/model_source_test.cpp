#include "worker/evaluate/model_source.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/sealed_json.h"
#include "common/file.h"
#include "common/safetensors.h"
#include "worker/checkpoint/checkpoint.h"

namespace tessera::evaluate {
namespace {

namespace fs = std::filesystem;

class ModelSource : public ::testing::Test {
 protected:
  void SetUp() override {
    run_ = (fs::temp_directory_path() / "model_source_test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(run_.data()), nullptr);
  }
  void TearDown() override { fs::remove_all(run_); }
  // A checkpoint of a small model in the run, at `step`.
  std::string checkpoint(int64_t step) {
    FunctionConfig function;
    function.model = {"custom", 8, 64, 24, 1, 3, 4.0};
    function.predictor = {12, 1, 3, 4.0};
    function.masks.min_keep = 4;
    model::State state = model::State::initial(function);
    state.step = step;
    checkpoint::Scalars scalars;
    scalars.step = step;
    scalars.function_yaml = print_function(function);
    scalars.state_digest = state.digest();
    const std::string folder = run_ + "/checkpoints/step-00000000000" + std::to_string(step);
    const auto written = checkpoint::write_checkpoint(state, scalars, folder);
    EXPECT_TRUE(written.has_value()) << (written ? "" : written.error().message);
    return folder;
  }
  std::string run_;
};

TEST_F(ModelSource, a_run_is_its_newest_finished_checkpoint) {
  checkpoint(3);
  const std::string newest = checkpoint(5);
  fs::create_directories(run_ + "/checkpoints/step-000000000009");  // no manifest: not finished
  for (const std::string& name : {run_, run_ + "/"}) {
    const auto model = load_model(name);
    ASSERT_TRUE(model.has_value()) << model.error().message;
    EXPECT_EQ(model->checkpoint, newest);
    EXPECT_EQ(model->state.step, 5);
    EXPECT_EQ(model->run_dir, run_);
  }
  const auto older = load_model(run_ + "/checkpoints/step-000000000003");
  ASSERT_TRUE(older.has_value()) << older.error().message;
  EXPECT_EQ(older->state.step, 3);
  EXPECT_EQ(older->run_dir, run_);
}

TEST_F(ModelSource, nothing_there_is_named) {
  for (const std::string& name : {run_, run_ + "/nothing"}) {
    const auto model = load_model(name);
    ASSERT_FALSE(model.has_value());
    EXPECT_EQ(exit_code_of(model.error()), exit_codes::kDataCorrupt);
    EXPECT_NE(model.error().message.find(name), std::string::npos) << model.error().message;
  }
}

TEST_F(ModelSource, a_checkpoint_without_a_target_encoder_is_refused_by_the_tensor_it_lacks) {
  const std::string folder = checkpoint(5);
  auto manifest = nlohmann::json::parse(*read_file(folder + "/manifest.json"));
  for (auto& entry : manifest["files"]) {
    const std::string path = folder + "/" + entry["file"].get<std::string>(), without = path + ".without";
    {
      const auto file = SafetensorsFile::open(path);
      ASSERT_TRUE(file.has_value());
      std::vector<TensorView> kept;
      for (const TensorView& tensor : file->tensors())
        if (!tensor.name.starts_with("target_encoder.")) kept.push_back(tensor);
      ASSERT_LT(kept.size(), file->tensors().size());
      const auto written = write_safetensors(without, kept, file->metadata());
      ASSERT_TRUE(written.has_value());
      entry["size_bytes"] = written->size_bytes, entry["hash"] = to_hex(written->hash);
    }
    fs::rename(without, path);
  }
  ASSERT_TRUE(write_file_atomic(folder + "/manifest.json", seal_json(manifest)).has_value());
  const auto model = load_model(folder);
  ASSERT_FALSE(model.has_value());
  EXPECT_EQ(exit_code_of(model.error()), exit_codes::kDataCorrupt);
  EXPECT_NE(model.error().message.find("tensor target_encoder."), std::string::npos) << model.error().message;
}

}  // namespace
}  // namespace tessera::evaluate
