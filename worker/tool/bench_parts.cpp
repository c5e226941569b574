// `tessera bench update`: beside a baseline that is measured in the same run.
#include <algorithm>
#include <cstring>

#include "common/clock.h"
#include "worker/optimizer/update.h"
#include "worker/tool/bench_parts.h"

namespace tessera::tool {
namespace {

using nlohmann::json;

json quantiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {{"min", values.front()}, {"median", values[values.size() / 2]}, {"max", values.back()}};
}

}  // namespace

Result<json> bench_update(const FunctionConfig& function, int64_t repeats) {
  model::State state = model::State::initial(function);
  const model::FlatBuffers gradient = model::make_buffers(state.layout);
  std::vector<float> target(size_t(state.layout.target_floats));
  int64_t floats = 0;
  for (const auto& bucket : gradient) floats += bucket.numel();
  std::vector<float> from(static_cast<size_t>(floats), 1.0f), to(static_cast<size_t>(floats));
  std::vector<double> update, ema, digest, copy;
  for (int64_t i = 0; i <= repeats; ++i) {
    double at = monotonic_seconds();
    const auto lap = [&](std::vector<double>& into) {
      const double now = monotonic_seconds();
      if (i > 0) into.push_back(now - at);
      at = monotonic_seconds();
    };
    optimizer::apply_adamw(state, gradient, 1.0f, {1e-4, 0.04, 0.996}, function.optimizer, false);
    lap(update);
    optimizer::ema_slice(state, 0.996, 0, state.layout.target_floats, target.data());
    lap(ema);
    (void)state.digest();
    lap(digest);
    std::memcpy(to.data(), from.data(), size_t(floats) * sizeof(float));
    lap(copy);
  }
  const auto median = [](const std::vector<double>& values) { return quantiles(values)["median"].get<double>(); };
  // AdamW reads weights, gradient and two moments and writes three of them; EMA reads two and writes one.
  const double adamw = 7.0 * 4 * double(floats) / median(update) / 1e9, averaged = 3.0 * 4 * double(state.layout.target_floats) / median(ema) / 1e9, bandwidth = 2.0 * 4 * double(floats) / median(copy) / 1e9;
  return json{{"seconds", {{"adamw", quantiles(update)}, {"ema", quantiles(ema)}, {"state_digest", quantiles(digest)}, {"memcpy", quantiles(copy)}}},
              {"gigabytes_per_second", {{"adamw", adamw}, {"ema", averaged}, {"memcpy", bandwidth}}},
              {"of_memcpy_bandwidth", {{"adamw", adamw / bandwidth}, {"ema", averaged / bandwidth}}},
              {"settings", {{"model", function.model.name}, {"parameters", floats}, {"repeats", repeats}}}};
}

}  // namespace tessera::tool
