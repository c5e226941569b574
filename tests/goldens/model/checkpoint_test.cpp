// The published checkpoint and the Hugging Face folder: read, continued, and their hidden states.
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <cstdlib>
#include <openssl/sha.h>

#include "tests/goldens/model/goldens.h"
#include "tests/goldens/model/trajectory.h"
#include "worker/import/hugging_face.h"
#include "worker/import/published.h"
#include "worker/model/io/export_parts.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

// The train_* folder that a checkpoint comes from: "train_tiny-latest.pth.tar" is of train_tiny.
std::optional<fs::path> training_of(const fs::path& checkpoint) {
  for (const auto& path : goldens::find("", "train_*"))
    if (checkpoint.filename().string().starts_with(path.filename().string() + "-")) return path;
  return std::nullopt;
}

// Model sizes of a checkpoint: those of its training case, or of its shapes with three heads, as all small goldens have.
import::PublishedOptions options_for(const fs::path& checkpoint) {
  import::PublishedOptions options;
  if (const auto training = training_of(checkpoint)) options.num_heads = goldens::load_json(*training / "steps.json").at("config").at("heads");
  else options.num_heads = 3;
  return options;
}

fs::path description_of(const fs::path& checkpoint) {
  const std::string name = checkpoint.string();
  return name.substr(0, name.size() - std::string(".pth.tar").size()) + ".json";
}

std::string sha256(const TensorView& tensor) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(static_cast<const unsigned char*>(tensor.data), size_t(tensor.size_bytes), digest);
  std::string text;
  for (const unsigned char byte : digest) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  return text;
}

TEST(Checkpoint, IsReadWhole) {
  TESSERA_GOLDEN_CASES(cases, "checkpoint", "*.pth.tar");
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const auto read = import::read_published(path.string(), options_for(path));
    ASSERT_TRUE(read) << read.error().message;
    const auto wanted = goldens::load_json(description_of(path));
    EXPECT_EQ(read->epoch, wanted.at("epoch").get<int64_t>());
    if (wanted.contains("opt_step_value")) {
      EXPECT_EQ(read->state.adam_steps, int64_t(wanted.at("opt_step_value").at("value").get<double>()));
    }
    const auto expect_bytes = [&](const char* network, const std::vector<TensorView>& tensors) {
      const auto& hashes = wanted.at("tensor_sha256").at(network);
      EXPECT_EQ(hashes.size(), tensors.size()) << network;
      for (const TensorView& tensor : tensors) EXPECT_EQ(sha256(tensor), hashes.at("module." + tensor.name).get<std::string>()) << network << " " << tensor.name;
    };
    expect_bytes("encoder", model::encoder_tensors(read->state, model::Encoder::kContext));
    expect_bytes("target_encoder", model::encoder_tensors(read->state, model::Encoder::kTarget));
    expect_bytes("predictor", model::predictor_tensors(read->state));
  }
}

TEST(Checkpoint, ContinuesToTheGoldenEnd) {
  TESSERA_GOLDEN_CASES(cases, "checkpoint", "*.pth.tar");
  int continued = 0;
  for (const auto& path : cases) {
    const auto training = training_of(path);
    if (!training) continue;
    SCOPED_TRACE(path.string());
    goldens::Trajectory t(*training);
    import::PublishedOptions options;
    options.function = t.function;
    auto read = import::read_published(path.string(), options);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->state.step, t.meta.at("checkpoint_taken_after_step").get<int64_t>());
    t.state = std::move(read->state);
    t.run_to_end();
    t.expect_final();
    ++continued;
  }
  if (continued == 0) GTEST_SKIP() << "no checkpoint of a train_* case";
}

at::Tensor nhwc(const at::Tensor& images_bchw) { return images_bchw.permute({0, 2, 3, 1}).contiguous(); }

TEST(Checkpoint, HuggingFaceHiddenStates) {
  TESSERA_GOLDEN_CASES(cases, "checkpoint", "hf_*_expected.safetensors");
  for (const auto& path : cases) {
    SCOPED_TRACE(path.string());
    const std::string name = path.string(), folder = name.substr(0, name.size() - std::string("_expected.safetensors").size());
    const auto wanted = goldens::load(path);
    const auto read = import::read_hugging_face(folder);
    ASSERT_TRUE(read) << read.error().message;
    auto engine = std::move(*model::Engine::make(read->function, "cpu"));
    for (const bool context : {false, true}) {
      EXPECT_TRUE(goldens::within("Hugging Face: hidden states", goldens::max_abs(engine->features(read->state, nhwc(wanted.at("images_u8")), context), wanted.at("last_hidden_state")), 1e-5));
      const at::Tensor up = nhwc(wanted.at("images_up_u8"));
      EXPECT_TRUE(goldens::within("Hugging Face: hidden states at another size", goldens::max_abs(engine->features(read->state, up, context), wanted.at("last_hidden_state_up_interpolated")), 1e-5));
    }
    const int64_t grid = wanted.at("images_up_u8").size(2) / read->function.model.patch_size;
    EXPECT_TRUE(goldens::within("Hugging Face: interpolated position tables", goldens::max_abs(model::interpolate_position(read->state.context_position, grid), wanted.at("position_embeddings_up_interpolated")), 1e-6));
  }
}

}  // namespace
}  // namespace tessera
