#include "worker/evaluate/picture_decoder.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <cstdlib>
#include <filesystem>
#include <gtest/gtest.h>

namespace tessera::evaluate {
namespace {

// Plain grey pictures, dark or bright as the first condition number says; the second says nothing.
DecoderPairs dark_and_bright(int64_t n) {
  DecoderPairs out{at::zeros({n, 2}), at::zeros({n, kDecoderSide, kDecoderSide, 3}, at::kByte)};
  for (int64_t i = 0; i < n; ++i) {
    const bool bright = i % 2 == 1;
    out.condition_be[i][0] = bright ? 1.0 : -1.0, out.condition_be[i][1] = double(i * 37 % 11);
    out.pictures_bhwc[i].fill_(bright ? 200 : 50);
  }
  return out;
}
PictureDecoder trained(int64_t steps, int64_t seed = 0) { return PictureDecoder::train(dark_and_bright(64), {steps, 4, seed, 5e-3}, [](int64_t, double) {}); }

constexpr int64_t kSteps = 4;

struct TemporaryFile {
  std::string path = (std::filesystem::temp_directory_path() / ("tessera-decoder-" + std::to_string(::getpid()) + ".safetensors")).string();
  ~TemporaryFile() { std::filesystem::remove(path); }
};

TEST(PictureDecoder, draws_what_the_condition_says) {
  at::set_num_threads(1);
  const PictureDecoder decoder = trained(48);
  at::Tensor conditions = at::zeros({2, 2});
  conditions[0][0] = -1.0, conditions[1][0] = 1.0;
  const at::Tensor pictures = decoder.draw(conditions, 3, 0, 0, kSteps).to(at::kFloat);
  EXPECT_GT(pictures[1].mean().item<float>(), pictures[0].mean().item<float>() + 40);
}

TEST(PictureDecoder, repeats_itself_and_varies_with_the_draw) {
  at::set_num_threads(1);
  const PictureDecoder decoder = trained(2), again = trained(2), other = trained(2, 1);
  const at::Tensor conditions = dark_and_bright(3).condition_be, one = decoder.draw(conditions, 0, 0, 0, kSteps);
  EXPECT_TRUE(at::equal(one, again.draw(conditions, 0, 0, 0, kSteps)));
  EXPECT_FALSE(at::equal(one, other.draw(conditions, 0, 0, 0, kSteps)));
  EXPECT_FALSE(at::equal(one, decoder.draw(conditions, 0, 1, 0, kSteps)));
  EXPECT_FALSE(at::equal(one, decoder.draw(conditions, 1, 0, 0, kSteps)));
  // A picture's noise is its own: the same among others.
  EXPECT_LE((one.narrow(0, 2, 1).to(at::kInt) - decoder.draw(conditions.narrow(0, 2, 1), 0, 0, 2, kSteps).to(at::kInt)).abs().max().item<int>(), 1);
}

TEST(PictureDecoder, comes_back_from_its_file_and_is_refused_for_another_encoder) {
  at::set_num_threads(1);
  const TemporaryFile file;
  const PictureDecoder decoder = trained(2);
  ASSERT_TRUE(decoder.save(file.path, "00ff", {{"data", "scenes:10"}}).has_value());
  const auto same = PictureDecoder::load(file.path, "00ff");
  ASSERT_TRUE(same.has_value()) << same.error().message;
  const at::Tensor conditions = dark_and_bright(2).condition_be;
  EXPECT_TRUE(at::equal(decoder.draw(conditions, 0, 0, 0, kSteps), same->draw(conditions, 0, 0, 0, kSteps)));
  const auto other = PictureDecoder::load(file.path, "11ee");
  ASSERT_FALSE(other.has_value());
  EXPECT_EQ(other.error().code, ErrorCode::kFixData);
  for (const char* part : {"another encoder", "00ff", "11ee", "train-decoder"}) EXPECT_NE(other.error().message.find(part), std::string::npos) << part;
  EXPECT_FALSE(PictureDecoder::load(file.path + ".none", "00ff").has_value());
}

}  // namespace
}  // namespace tessera::evaluate
