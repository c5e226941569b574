// `tessera bench update`: beside a baseline that is measured in the same run.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

#include "common/clock.h"
#include "worker/optimizer/update.h"
#include "worker/tool/bench_parts.h"

namespace tessera::tool {
using nlohmann::json;

json quantiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {{"min", values.front()}, {"median", values[values.size() / 2]}, {"max", values.back()}};
}

namespace {

struct UpdateTimes {
  std::vector<double> adamw, ema, fused, state_digest, gradient, copy;
};

UpdateTimes time_update(const FunctionConfig& function, model::State& state, int64_t floats, int64_t repeats) {
  const model::FlatBuffers gradient = model::make_buffers(state.layout);
  std::vector<float> target(size_t(state.layout.target_floats)), from(static_cast<size_t>(floats), 1.0f), to(static_cast<size_t>(floats));
  UpdateTimes t;
  const optimizer::StepRates rates{1e-4, 0.04, 0.996};
  for (int64_t i = 0; i <= repeats; ++i) {
    double at = monotonic_seconds();
    const auto lap = [&](std::vector<double>& into) {
      const double now = monotonic_seconds();
      if (i > 0) into.push_back(now - at);
      at = monotonic_seconds();
    };
    optimizer::apply_adamw(state, gradient, 1.0f, rates, function.optimizer, false);
    lap(t.adamw);
    optimizer::ema_slice(state, rates.ema, 0, state.layout.target_floats, target.data());
    lap(t.ema);
    optimizer::apply_with_target(state, gradient, 1.0f, rates, function.optimizer);
    lap(t.fused);
    (void)state.digest();
    lap(t.state_digest);
    (void)optimizer::examine(state, gradient, 1.0f);
    lap(t.gradient);
    std::memcpy(to.data(), from.data(), size_t(floats) * sizeof(float));
    lap(t.copy);
  }
  return t;
}

}  // namespace

Result<json> bench_update(const FunctionConfig& function, int64_t repeats) {
  model::State state = model::State::initial(function);
  const int64_t target = state.layout.target_floats;
  int64_t floats = 0;
  for (const auto& bucket : state.weights) floats += bucket.numel();
  const UpdateTimes t = time_update(function, state, floats, repeats);
  // GB/s of the streams that each reads and writes: AdamW weights, gradient and two moments, of which it writes three; the
  // EMA two and one; fused, the target once more each way; digests what they read.
  const auto rate = [](double streams, const std::vector<double>& times) { return streams * 4 / quantiles(times)["median"].get<double>() / 1e9; };
  const double n = double(floats), e = double(target), bandwidth = rate(2 * n, t.copy);
  json rates{{"adamw", rate(7 * n, t.adamw)}, {"ema", rate(3 * e, t.ema)}, {"fused", rate(7 * n + 2 * e, t.fused)}, {"state_digest", rate(3 * n + e, t.state_digest)}, {"gradient", rate(n, t.gradient)}};
  json shares;
  for (const auto& [name, value] : rates.items()) shares[name] = value.get<double>() / bandwidth;
  rates["memcpy"] = bandwidth;
  return json{{"seconds", {{"adamw", quantiles(t.adamw)}, {"ema", quantiles(t.ema)}, {"fused", quantiles(t.fused)}, {"state_digest", quantiles(t.state_digest)}, {"gradient", quantiles(t.gradient)}, {"memcpy", quantiles(t.copy)}}},
              {"gigabytes_per_second", rates},
              {"of_memcpy_bandwidth", shares},
              {"settings", {{"model", function.model.name}, {"parameters", floats}, {"repeats", repeats}, {"threads", at::get_num_threads()}}}};
}

}  // namespace tessera::tool
