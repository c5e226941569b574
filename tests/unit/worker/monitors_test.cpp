#include "worker/evaluate/monitors.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "worker/evaluate/segment.h"

namespace tessera::evaluate {
namespace {

at::Tensor noise(int64_t n, int64_t d) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(uint64_t(7));
  return at::randn({n, d}, random, at::kFloat);
}

TEST(Spread, independent_channels_use_all_directions) {
  const Spread s = spread(noise(4000, 8));
  EXPECT_NEAR(s.effective_rank, 8, 0.1);
  EXPECT_NEAR(s.deviation_mean, 1, 0.05);
  EXPECT_NEAR(s.mean_cosine, 0, 0.02);
  EXPECT_FALSE(collapsed(s));
}

TEST(Spread, one_direction_has_rank_one) {
  const Spread s = spread(noise(500, 1).matmul(at::ones({1, 8})));
  EXPECT_NEAR(s.effective_rank, 1, 1e-6);
  EXPECT_TRUE(collapsed(s));
}

TEST(Spread, equal_rows_have_collapsed_whatever_rounding_says) {
  const at::Tensor row = noise(1, 16), rows = row + noise(300, 16) * 1e-9;
  const Spread s = spread(rows);
  EXPECT_LT(s.deviation_mean, 1e-6);
  EXPECT_NEAR(s.mean_cosine, 1, 1e-9);
  EXPECT_EQ(s.effective_rank, 1);
  EXPECT_TRUE(collapsed(s));
}

TEST(Spread, cosine_is_that_of_all_pairs) {
  const at::Tensor rows = noise(6, 3) + 1;
  double sum = 0;
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = 0; j < 6; ++j)
      if (i != j) sum += at::dot(rows[i], rows[j]).item<double>() / (rows[i].norm().item<double>() * rows[j].norm().item<double>());
  EXPECT_NEAR(spread(rows).mean_cosine, sum / 30, 1e-6);
}

// Two images, two targets of 1 x 2 patches on a 4 x 4 grid; the prediction is off by `target + 1` everywhere.
TEST(BlockLoss, sorts_blocks_by_place_and_size) {
  proto::TileHeader header;
  header.grid = 4, header.target_length = 2, header.sample_ids = {5, 9};
  header.contexts = {{15, 15}};
  header.targets = {{0, 1, 0, 1}, {14, 15, 11, 15}};  // target 1 of image 1 is 2 x 1
  model::TileOutputs outputs;
  outputs.wanted_bkd = at::zeros({4, 2, 3});
  outputs.prediction_bkd = at::zeros({4, 2, 3});
  outputs.prediction_bkd.narrow(0, 0, 2).fill_(1), outputs.prediction_bkd.narrow(0, 2, 2).fill_(2);
  BlockLoss l1("l1"), smooth("smooth_l1");
  l1.add(header, outputs), smooth.add(header, outputs);
  const auto json = l1.to_json();
  EXPECT_DOUBLE_EQ(json["loss"].get<double>(), 1.5);
  EXPECT_EQ(json["by_position"][0][0]["blocks"], 2);
  EXPECT_DOUBLE_EQ(json["by_position"][0][0]["loss"].get<double>(), 1);
  EXPECT_EQ(json["by_position"][2][2]["blocks"], 2);
  EXPECT_TRUE(json["by_position"][1][1]["loss"].is_null());
  EXPECT_EQ(json["by_size"]["1x2"]["blocks"], 3);
  EXPECT_EQ(json["by_size"]["2x1"]["blocks"], 1);
  EXPECT_DOUBLE_EQ(json["by_size"]["2x1"]["loss"].get<double>(), 2);
  EXPECT_DOUBLE_EQ(smooth.to_json()["loss"].get<double>(), (0.5 + 1.5) / 2);
}

TEST(Segment, a_patch_is_what_most_of_it_is) {
  at::Tensor masks = at::zeros({1, 4, 4, 3}, at::kByte);
  masks.select(0, 0).narrow(0, 0, 2).narrow(1, 2, 2).fill_(255);  // top right
  masks[0][2].narrow(0, 0, 1).fill_(255);                         // a quarter of bottom left
  EXPECT_EQ(patch_labels(masks, 2), (std::vector<int64_t>{0, 1, 0, 0}));
  masks[0][2].narrow(0, 2, 2).fill_(255), masks[0][3].narrow(0, 2, 1).fill_(175);  // three of four, one of them the grey of a scene's last object
  EXPECT_EQ(patch_labels(masks, 2), (std::vector<int64_t>{0, 1, 0, 1}));
}

TEST(Segment, mean_iou_of_a_worked_example) {
  // Class 1: one in common of three; class 0: one of three.
  EXPECT_DOUBLE_EQ(mean_iou({1, 1, 0, 0}, {1, 0, 1, 0}, 2), 1.0 / 3);
  EXPECT_DOUBLE_EQ(mean_iou({0, 0}, {0, 0}, 2), 1);
  // Three classes: one of two, one of three, none of one; a class that training never saw (-1) is right for nobody.
  EXPECT_DOUBLE_EQ(mean_iou({0, 0, 1, 1, 1}, {0, 1, 1, -1, 2}, 3), (1.0 / 2 + 1.0 / 4 + 0) / 3);
}

TEST(Segment, error_of_the_mean_iou_over_images) {
  // Four images of one patch, left out in turn.
  const std::vector<int64_t> predicted{1, 1, 1, 0}, truth{1, 1, 0, 0};
  const auto of = [](std::vector<int64_t> p, std::vector<int64_t> t) { return mean_iou(p, t, 2); };
  const double without[] = {of({1, 1, 0}, {1, 0, 0}), of({1, 1, 0}, {1, 0, 0}), of({1, 1, 0}, {1, 1, 0}), of({1, 1, 1}, {1, 1, 0})};
  double mean = 0, square = 0;
  for (const double v : without) mean += v / 4;
  for (const double v : without) square += (v - mean) * (v - mean);
  const MeanError score = mean_iou_by_image(predicted, truth, 2, 4);
  EXPECT_DOUBLE_EQ(score.mean, mean_iou(predicted, truth, 2));
  EXPECT_NEAR(score.standard_error, std::sqrt(square * 3 / 4), 1e-12);
}

TEST(Segment, scenes_bring_their_masks_along) {
  EXPECT_EQ(masks_of("scenes:100:64:3"), "scene-masks:100:64:3");
  EXPECT_EQ(masks_of("photos"), "");
}

}  // namespace
}  // namespace tessera::evaluate
