#include "ops/cli/bench_train.h"

#include <gtest/gtest.h>

#include "common/model_size.h"

namespace tessera::cli {
namespace {

Json step(double data, double compute, double communication, double images_per_second) {
  return {{"images_per_second", images_per_second}, {"seconds", {{"data", data}, {"compute", compute}, {"communication", communication}, {"checkpoint", 0.0}, {"total", data + compute + communication}}}};
}

FunctionConfig function() { return parse_config("function: {batch: {tile_size: 8, tiles: 4}}", "test", {})->function; }

TEST(TrainReport, LeavesTheWarmUpOutAndAddsUp) {
  const std::vector<Json> steps{step(50, 50, 0, 0.32), step(0.004, 0.9, 0.096, 32), step(0.004, 0.9, 0.096, 32), step(0.002, 1.9, 0.098, 16)};
  const Json shares{{"target", 4.0}, {"context", 1.0}, {"predictor", 2.0}, {"backward", 2.0}, {"update", 1.0}, {"gradient", 9.0}};
  const FunctionConfig f = function();
  const double flops = image_flops(f, expected_mask_lengths(f)).total(), speed = 32.0 * 3 / 4;
  const Json r = train_report(steps, 1, {{100, 3}, {50, 1}, 8}, f, 2, flops * speed / 1e12, shares);
  EXPECT_NEAR(r["images_per_second"]["mean"].get<double>(), speed, 1e-9);
  EXPECT_EQ(r["images_per_second"]["min"].get<double>(), 16);
  EXPECT_EQ(r["images_per_second"]["median"].get<double>(), 32);
  EXPECT_NEAR(r["seconds_per_step"].get<double>(), 4.0 / 3, 1e-9);
  EXPECT_NEAR(r["mfu"].get<double>(), 0.5, 1e-9) << "two workers, each with the whole speed as its peak";
  const Json& split = r["split"];
  EXPECT_NEAR(split["data"].get<double>() + split["compute"].get<double>() + split["communication_exposed"].get<double>() + split["checkpoint"].get<double>(), 1, 1e-9);
  EXPECT_NEAR(split["target"].get<double>(), 0.4 * 3.7 / 4, 1e-9);
  EXPECT_NEAR(split["update"].get<double>(), 0.1 * 3.7 / 4, 1e-9);
  EXPECT_EQ(r["memory_bytes"]["trainer"].get<int64_t>(), 100);
  EXPECT_EQ(r["loader"]["cores_missing"].get<double>(), 0) << "0.25 % of the time is no finding";
  EXPECT_FALSE(r["loader"].contains("advice"));
}

TEST(TrainReport, SaysHowManyLoaderCoresAreMissing) {
  const Json r = train_report({step(3, 1, 0, 8)}, 0, {{0, 0}, {0, 10}, 10}, function(), 1, 0, Json::object());
  EXPECT_NEAR(r["loader"]["starvation"].get<double>(), 0.75, 1e-9);
  EXPECT_NEAR(r["loader"]["cores_used"].get<double>(), 1, 1e-9);
  EXPECT_NEAR(r["loader"]["cores_missing"].get<double>(), 3, 1e-9) << "a quarter of the time for one core's work";
  EXPECT_NE(r["loader"]["advice"].get<std::string>().find("need 4.00"), std::string::npos);
  EXPECT_TRUE(r["mfu"].is_null());
  EXPECT_FALSE(r["split"].contains("target"));
  EXPECT_FALSE(train_report({step(0, 1, 0, 8)}, 0, {}, function(), 1, 0, {{"gradient", 1.0}, {"update", 0.1}})["split"].contains("update")) << "of a GPU only the whole is known";
}

}  // namespace
}  // namespace tessera::cli
