// The bf16 policies against the drift that bfloat16 autocast has on the same cases (bf16_cpu_autocast.json): no output, no
// loss and no gradient may be further from fp32 than twice that.
#include <gtest/gtest.h>

#include <ATen/ATen.h>
#include <cstdlib>

#include "tests/goldens/model/goldens.h"
#include "tests/goldens/model/model_case.h"

namespace tessera {
namespace {

double relative_l2(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.reshape(-1).to(at::kDouble), y = b.reshape(-1).to(at::kDouble);
  return ((x - y).norm() / y.norm()).item<double>();
}

at::Tensor all_gradients(const goldens::Case& c) {
  model::FlatBuffers gradient = model::make_buffers(c.state.layout);
  (*model::Engine::make(c.function, "cpu"))->gradient(c.state, c.tile, gradient, false);
  std::vector<at::Tensor> flat;
  for (const auto& place : c.state.layout.tensors) flat.push_back(c.state.view(gradient, place).reshape(-1));
  return at::cat(flat);
}

TEST(Bf16, StaysWithinTheDriftOfAutocast) {
  TESSERA_GOLDEN_CASES(files, "", "bf16_*.json");
  const auto file = goldens::load_json(files[0]);
  ASSERT_FALSE(file.at("cases").empty());
  for (const auto& [name, drift] : file.at("cases").items()) {
    const auto path = goldens::folder() / name;
    for (const char* precision : {"bf16", "published"}) {
      SCOPED_TRACE(name + " " + precision);
      const goldens::Case c = goldens::load_case(path, precision), exact = goldens::load_case(path);
      const model::TileOutputs out = (*model::Engine::make(c.function, "cpu"))->outputs(c.state, c.tile);
      for (const auto& [output, ours] : goldens::by_golden_name(out)) {
        if (!drift.at("outputs").contains(output)) continue;
        const double measured = relative_l2(ours, c.io.at(output));
        EXPECT_TRUE(goldens::within("bf16: outputs, drift over autocast's", measured / drift.at("outputs").at(output).at("rel_l2").get<double>(), 2)) << output;
        EXPECT_GT(measured, 1e-5) << output << ": this is not bf16";
      }
      EXPECT_NEAR(out.loss, drift.at("loss_fp32").get<double>(), 2e-4);
      EXPECT_TRUE(goldens::within("bf16: gradients, drift over autocast's", relative_l2(all_gradients(c), all_gradients(exact)) / drift.at("gradient_rel_l2_all").get<double>(), 2));
    }
  }
}

}  // namespace
}  // namespace tessera
