// What a user reads when a GPU cannot be used. No GPU is needed to say it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/cuda/device_checks.h"
#include "worker/model/engine.h"

namespace tessera::cuda {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string said(const Status& status) {
  if (status) return "";
  EXPECT_EQ(status.error().code, ErrorCode::kFixConfig);
  return status.error().message;
}

TEST(Driver, NoneTooOldNoDeviceNotThatMany) {
  EXPECT_THAT(said(judge_driver("cuda:0", {0, 13000, 0, "CUDA driver version is insufficient"})), AllOf(HasSubstr("no NVIDIA driver"), HasSubstr("operation.device: cpu"), HasSubstr("CUDA 13.0")));
  EXPECT_THAT(said(judge_driver("cuda:0", {12040, 13000, 1, ""})), AllOf(HasSubstr("up to 12.4"), HasSubstr("runs on CUDA 13.0"), HasSubstr("580")));
  EXPECT_THAT(said(judge_driver("cuda:0", {13000, 13000, 0, "no CUDA-capable device is detected"})), AllOf(HasSubstr("no CUDA device can be used"), HasSubstr("CUDA_VISIBLE_DEVICES")));
  EXPECT_THAT(said(judge_driver("cuda:2", {13010, 13000, 2, ""})), AllOf(HasSubstr("cuda:2 is not there"), HasSubstr("2 CUDA devices"), HasSubstr("cuda:0 to cuda:1")));
  EXPECT_EQ(said(judge_driver("cuda:1", {13010, 13000, 2, ""})), "");
  EXPECT_EQ(said(judge_driver("cuda", {13000, 13000, 1, ""})), "");
}

TEST(Capability, OlderThanAmpereIsRefused) {
  EXPECT_THAT(said(judge_capability("cuda:0", "Tesla V100", 7, 0)), AllOf(HasSubstr("Tesla V100"), HasSubstr("7.0"), HasSubstr("needs 8.0")));
  EXPECT_EQ(said(judge_capability("cuda:0", "NVIDIA H200", 9, 0)), "");
}

TEST(Interface, ASettingThatFitsNothingNamesWhatThereIs) {
  const std::vector<std::string> there{"eth0", "ib0", "ib1", "lo"};
  EXPECT_EQ(said(judge_interface("", there)), "");
  EXPECT_EQ(said(judge_interface("ib", there)), "");
  EXPECT_EQ(said(judge_interface("enp,eth", there)), "");
  EXPECT_EQ(said(judge_interface("=eth0", there)), "");
  EXPECT_EQ(said(judge_interface("^lo,docker", there)), "");
  EXPECT_THAT(said(judge_interface("=eth", there)), HasSubstr("'=eth'"));
  EXPECT_THAT(said(judge_interface("enp", there)), AllOf(HasSubstr("NCCL_SOCKET_IFNAME is 'enp'"), HasSubstr("eth0, ib0, ib1, lo")));
  EXPECT_THAT(said(judge_interface("^eth,ib,lo", there)), HasSubstr("no network interface"));
}

TEST(Heads, WidthsThatTheAttentionKernelsLackAreRefused) {
  FunctionConfig f;
  f.model.embed_dim = 1280, f.model.num_heads = 16, f.predictor.embed_dim = 384, f.predictor.num_heads = 16, f.precision = "published";
  EXPECT_EQ(said(judge_heads(f)), "");
  f.predictor.num_heads = 32;
  EXPECT_THAT(said(judge_heads(f)), AllOf(HasSubstr("function.predictor: 384 channels in 32 heads make heads of 12"), HasSubstr("function.precision: fp32")));
  f.precision = "fp32";
  EXPECT_EQ(said(judge_heads(f)), "");
}

TEST(TargetPrecision, Fp8WantsANewDeviceAndEvenWidths) {
  FunctionConfig f;
  f.model.embed_dim = 1280, f.model.mlp_ratio = 4;
  EXPECT_EQ(said(judge_target_precision("cuda:0", "NVIDIA A100", 8, 0, f)), "");
  f.target_precision = "fp8";
  EXPECT_THAT(said(judge_target_precision("cuda:0", "NVIDIA A100", 8, 0, f)), AllOf(HasSubstr("cuda:0 (NVIDIA A100)"), HasSubstr("8.0"), HasSubstr("set it to same")));
  EXPECT_EQ(said(judge_target_precision("cuda:0", "NVIDIA L40", 8, 9, f)), "");
  EXPECT_EQ(said(judge_target_precision("cuda:0", "NVIDIA H200", 9, 0, f)), "");
  f.model.embed_dim = 200;
  EXPECT_THAT(said(judge_target_precision("cuda:0", "NVIDIA H200", 9, 0, f)), AllOf(HasSubstr("200 channels"), HasSubstr("multiple of 16")));
}

TEST(Device, AProgramWithoutAGpuHalfSaysSo) {
  const auto engine = model::Engine::make({}, "cuda:0");
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, ErrorCode::kFixConfig);
  EXPECT_THAT(engine.error().message, AllOf(HasSubstr("cuda:0"), HasSubstr("operation.device: cpu")));
  EXPECT_EQ(device_index("cuda"), 0);
  EXPECT_EQ(device_index("cuda:13"), 13);
}

}  // namespace
}  // namespace tessera::cuda
