#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <unistd.h>
#include <utility>

#include "common/file.h"
#include "common/model_size.h"
#include "common/philox.h"
#include "common/process_usage.h"
#include "worker/model/backend.h"
#include "worker/model/engine.h"
#include "worker/model/numerics.h"
#include "worker/optimizer/update.h"
#include "worker/tool/bench_parts.h"
#include "worker/tool/commands.h"

namespace tessera::tool {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model = "vit_tiny", precision = "fp32", target_precision = "same", device = "cpu", config;
  int64_t patch = 16, size = 224, tile = 16, threads = 1, repeats = 7, predictor_depth = 6, predictor_dim = 384;
  double peak_tflops = 0;  // 0: a product measured here
  bool json = false;
};

// Masks of the published geometry at its mean size: targets of 0.175 of the grid, a context of a quarter of it.
model::Tile make_tile(const FunctionConfig& f, int64_t b) {
  const int64_t patches = f.model.grid() * f.model.grid(), kept = std::max<int64_t>(1, patches * 26 / 100), wanted = std::max<int64_t>(1, patches * 175 / 1000);
  model::Tile tile;
  tile.pixels = at::empty({b, f.model.image_size, f.model.image_size, 3}, at::kByte);
  PhiloxStream random(0, Purpose::kScenes, 0, 0);
  uint8_t* out = tile.pixels.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < tile.pixels.numel(); ++i) out[i] = uint8_t(random.next_u32());
  const auto mask = [&](int64_t first, int64_t count) { return at::arange(first, first + count, at::kLong).expand({b, count}).contiguous(); };
  tile.contexts.push_back(mask(0, kept));
  for (int64_t i = 0; i < 4; ++i) tile.targets.push_back(mask(i * (patches - wanted) / 4, wanted));
  return tile;
}

// Of one image's step with the lengths of this tile.
double step_flops(const FunctionConfig& f, const model::Tile& tile) {
  return image_flops(f, {double(tile.contexts[0].size(1)), double(tile.targets[0].size(1)), int64_t(tile.contexts.size()), int64_t(tile.targets.size())}).total();
}

// FLOP/s that NVIDIA states for an H100 or H200 (SXM), dense; other devices: take the ratio.
constexpr double kBf16Peak = 989.4e12, kFp32Peak = 66.9e12;

struct Times {
  std::vector<double> total, gradient, context, target_predictor, backward, update, target;  // target: its pass alone
};

// What the largest part of the step's arithmetic could reach: a square product in the policy's type, best of five.
double product_tflops(const std::string& precision) {
  constexpr int64_t n = 1024;
  const auto type = precision == "fp32" ? at::kFloat : at::kBFloat16;
  const at::Tensor a = at::ones({n, n}, type), b = at::ones({n, n}, type), bias = at::zeros({n}, type);
  double best = 0;
  for (int i = 0; i < 6; ++i) {
    const auto start = Clock::now();
    const at::Tensor product = at::addmm(bias, a, b.t());
    best = std::max(best, 2.0 * n * n * n / std::chrono::duration<double>(Clock::now() - start).count() / 1e12);
  }
  return best;
}

// A gradient, with the moments that its hooks tell.
void time_gradient(model::Engine& engine, const model::State& state, const model::Tile& tile, model::FlatBuffers& gradient, bool keep, Times& t) {
  const auto seconds = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  const auto start = Clock::now();
  auto context = start, forward = start;
  bool backward = false;  // the first whole bucket is the predictor's last layer: a small part of the way
  model::GradientHooks hooks;
  hooks.before_target = [&] { context = Clock::now(); };
  hooks.bucket_ready = [&](size_t) {
    if (!std::exchange(backward, true)) forward = Clock::now();
  };
  engine.gradient(state, tile, gradient, false, hooks);
  const auto end = Clock::now();
  if (keep) t.gradient.push_back(seconds(start, end)), t.context.push_back(seconds(start, context)), t.target_predictor.push_back(seconds(context, forward)), t.backward.push_back(seconds(forward, end));
}
double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

// Medians. On a GPU the moments within a gradient pass when they are queued: only its end says something.
nlohmann::json split_of(const Times& t, bool gpu) {
  nlohmann::json split{{"gradient", median(t.gradient)}, {"update", median(t.update)}};
  if (gpu) return split;
  split["target"] = median(t.target), split["context"] = median(t.context), split["predictor"] = std::max(0.0, median(t.target_predictor) - median(t.target)), split["backward"] = median(t.backward);
  return split;
}

Result<FunctionConfig> function_of(const Options& o) {
  if (!o.config.empty()) {
    TESSERA_ASSIGN(const Config config, load_config(o.config, {}));
    return config.function;
  }
  TESSERA_ASSIGN(const Config config,
                 parse_config("function: {masks: {min_keep: 0}}", "bench", {"function.model.name=" + o.model, "function.model.patch_size=" + std::to_string(o.patch),
                                                                            "function.model.image_size=" + std::to_string(o.size), "function.precision=" + o.precision, "function.target_precision=" + o.target_precision,
                                                                            "function.batch.tile_size=" + std::to_string(o.tile), "function.batch.tiles=1",
                                                                            "function.predictor.depth=" + std::to_string(o.predictor_depth),
                                                                            "function.predictor.embed_dim=" + std::to_string(o.predictor_dim)}));
  return config.function;
}

Result<nlohmann::json> run(const Options& o) {
  at::set_num_threads(int(o.threads));
  TESSERA_ASSIGN(const FunctionConfig f, function_of(o));
  TESSERA_ASSIGN(const auto engine, model::Engine::make(f, o.device));
  const bool gpu = model::is_cuda(o.device);
  if (gpu) TESSERA_TRY(model::prepare_device(o.device, &f));
  model::State state = model::to_device(model::State::initial(f), f.precision, o.device);
  model::FlatBuffers gradient = model::make_buffers(state.layout, o.device);
  const int64_t images = f.batch.tile_size;
  const model::Tile tile = make_tile(f, images);
  Times t;
  const auto seconds_between = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  for (int64_t i = 0; i < o.repeats + 1; ++i) {  // the first touches memory and chooses kernels
    const auto start = Clock::now();
    time_gradient(*engine, state, tile, gradient, i > 0, t);
    const auto evaluated = Clock::now();
    if (optimizer::examine(state, gradient, 1.0f).summary.finite) optimizer::apply_with_target(state, gradient, 1.0f, {1e-4, 0.04, 0.996}, f.optimizer);
    if (gpu) model::backend()->wait();
    const auto updated = Clock::now();
    if (i > 0) t.total.push_back(seconds_between(start, updated)), t.update.push_back(seconds_between(evaluated, updated));
    const auto alone = Clock::now();
    if (i > 0 && !gpu) engine->features(state, tile.pixels, false), t.target.push_back(seconds_between(alone, Clock::now()));
  }
  const double flops = step_flops(f, tile) * double(images), seconds = median(t.total), peak = o.peak_tflops > 0 ? o.peak_tflops : gpu ? (f.precision == "fp32" ? kFp32Peak : kBf16Peak) / 1e12 : product_tflops(f.precision);
  const auto [fastest, slowest] = std::minmax_element(t.total.begin(), t.total.end());
  return nlohmann::json{{"images_per_second", {{"min", double(images) / *slowest}, {"median", double(images) / seconds}, {"max", double(images) / *fastest}}},
                        {"seconds_per_step", seconds},
                        {"tflops", flops / median(t.gradient) / 1e12},
                        {"mfu", flops / seconds / 1e12 / peak},
                        {"product_tflops", peak},
                        {"memory_bytes", gpu ? model::backend()->peak_memory_bytes() : peak_resident_bytes(getpid())},
                        {"split", split_of(t, gpu)},
                        {"settings", {{"model", f.model.name}, {"patch", f.model.patch_size}, {"size", f.model.image_size}, {"tile", images}, {"precision", f.precision}, {"target_precision", f.target_precision}, {"matmul", model::choose_matmul()}, {"device", o.device}, {"threads", o.threads}, {"repeats", o.repeats}}}};
}

}  // namespace

int bench_main(int argc, char** argv) {
  CLI::App app{"Measures this machine"};
  app.name("tessera bench");
  app.require_subcommand(1);
  Options o;
  BenchCollectiveOptions c;
  CLI::App* collective = app.add_subcommand("collective", "the three reductions, by shared memory and TCP, ranks as threads");
  collective->add_option("--ranks", c.ranks)->check(CLI::Range(2, 64))->capture_default_str();
  collective->add_option("--tiles", c.tiles, "tiles of a step")->check(CLI::Range(1, 65536))->capture_default_str();
  collective->add_option("--megabytes", c.megabytes, "of one bucket")->check(CLI::Range(1, 100000))->capture_default_str();
  collective->add_option("--repeats", c.repeats)->check(CLI::Range(1, 100000))->capture_default_str();
  collective->add_flag("--json", o.json, "one JSON object on the last line");
  CLI::App* update = app.add_subcommand("update", "AdamW, EMA and the state digest beside memcpy");
  update->add_option("--model", o.model, "vit_tiny ... vit_giant")->capture_default_str();
  update->add_option("--config", o.config, "the function of a configuration file instead")->check(CLI::ExistingFile);
  update->add_option("--threads", o.threads, "compute threads")->check(CLI::Range(1, 1024))->capture_default_str();
  update->add_option("--repeats", o.repeats)->check(CLI::Range(1, 100000))->capture_default_str();
  update->add_flag("--json", o.json, "one JSON object on the last line");
  CLI::App* step = app.add_subcommand("step", "gradient of one tile, AdamW and EMA, without data and communication");
  CLI::App* kernels = app.add_subcommand("kernels", "the operations of a step one by one");
  for (CLI::App* one : {step, kernels}) {
    one->add_option("--model", o.model, "vit_tiny ... vit_giant")->capture_default_str();
    one->add_option("--config", o.config, "the function of a configuration file instead of the options below")->check(CLI::ExistingFile);
    one->add_option("--patch", o.patch)->capture_default_str();
    one->add_option("--size", o.size, "image size")->capture_default_str();
    one->add_option("--tile", o.tile, "images")->check(CLI::Range(1, 65536))->capture_default_str();
    one->add_option("--precision", o.precision, "fp32, bf16 or published")->capture_default_str();
    one->add_option("--device", o.device, "cpu or cuda:N")->capture_default_str();
    one->add_option("--threads", o.threads, "compute threads")->check(CLI::Range(1, 1024))->capture_default_str();
    one->add_option("--repeats", o.repeats, "measured steps")->check(CLI::Range(1, 100000))->capture_default_str();
    one->add_option("--predictor-depth", o.predictor_depth)->capture_default_str();
    one->add_option("--predictor-dim", o.predictor_dim)->capture_default_str();
    one->add_flag("--json", o.json, "one JSON object on the last line");
  }
  step->add_option("--target-precision", o.target_precision, "same or fp8")->capture_default_str();
  step->add_option("--peak-tflops", o.peak_tflops, "of the device, for mfu; default: NVIDIA's figure on a GPU, a matrix product measured in this run on a CPU")->check(CLI::PositiveNumber);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  if (collective->parsed()) {
    const auto result = bench_collective(c);
    if (!result) return report(result.error());
    const auto line = [&](const char* transport) {
      const auto& by = (*result)[transport];
      char text[240];
      const auto ms = [&](const char* method) { return 1e3 * by[method]["seconds"]["median"].get<double>(); };
      std::snprintf(text, sizeof text, "%s: tree %.2f ms (%.2f times fast), fixed32 %.2f ms, fast %.2f ms, the bytes alone %.2f ms", transport, ms("tree"), by["tree"]["of_fast"]["median"].get<double>(), ms("fixed32"), ms("fast"), ms("bound"));
      return std::string(text);
    };
    const std::string text = std::to_string(c.ranks) + " ranks, " + std::to_string(c.tiles) + " tiles, " + std::to_string(c.megabytes) + " MB\n" + line("shared_memory") + "\n" + line("tcp");
    print(*result, text, o.json);
    return 0;
  }
  if (update->parsed()) {
    at::set_num_threads(int(o.threads));
    const auto function = function_of(o);
    if (!function) return report(function.error());
    const auto result = bench_update(*function, o.repeats);
    if (!result) return report(result.error());
    char text[256];
    const auto& rates = (*result)["gigabytes_per_second"];
    std::snprintf(text, sizeof text, "AdamW and EMA in one pass %.1f GB/s (%.0f %% of memcpy's), AdamW %.1f, EMA %.1f, state digest %.1f, gradient's digest and norm %.1f GB/s", rates["fused"].get<double>(),
                  100 * (*result)["of_memcpy_bandwidth"]["fused"].get<double>(), rates["adamw"].get<double>(), rates["ema"].get<double>(), rates["state_digest"].get<double>(), rates["gradient"].get<double>());
    print(*result, text, o.json);
    return 0;
  }
  if (kernels->parsed()) {
    at::set_num_threads(int(o.threads));
    const auto function = function_of(o);
    if (!function) return report(function.error());
    const auto result = bench_kernels(*function, o.device, o.repeats);
    if (!result) return report(result.error());
    std::string text;
    for (const auto& row : (*result)["kernels"]) {
      char line[200];
      std::snprintf(line, sizeof line, "%-28s %-32s %10.1f us  %8.2f TFLOP/s  %8.1f GB/s\n", row["what"].get<std::string>().c_str(), row["shape"].get<std::string>().c_str(), row["microseconds"].get<double>(), row.value("tflops", 0.0),
                    row.value("gigabytes_per_second", 0.0));
      text += line;
    }
    print(*result, text, o.json);
    return 0;
  }
  const auto result = run(o);
  if (!result) return report(result.error());
  const auto& speed = (*result)["images_per_second"];
  char text[256];
  std::snprintf(text, sizeof text, "%.1f images/s (%.1f to %.1f), %.3f s a step, %.3f TFLOP/s, peak memory %s", speed["median"].get<double>(), speed["min"].get<double>(),
                speed["max"].get<double>(), (*result)["seconds_per_step"].get<double>(), (*result)["tflops"].get<double>(), human_bytes((*result)["memory_bytes"].get<int64_t>()).c_str());
  print(*result, text, o.json);
  return 0;
}

}  // namespace tessera::tool
