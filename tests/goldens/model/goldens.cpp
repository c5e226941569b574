#include "tests/goldens/model/goldens.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <stdexcept>

#include "common/digest.h"
#include "common/safetensors.h"

namespace tessera::goldens {
namespace fs = std::filesystem;

namespace {

// One compute thread, and the code paths that the trainer pins: before the first call into LibTorch's kernels.
const bool kPinned = [] {
  setenv("MKL_CBWR", "AVX2", 1);
  at::set_num_threads(1);
  return true;
}();

}  // namespace

fs::path folder() {
  const char* set = std::getenv("TESSERA_GOLDENS");
  return set && *set ? fs::path(set) : fs::path("../shared/goldens");
}

std::vector<fs::path> find(const std::string& below, const std::string& pattern) {
  std::vector<fs::path> out;
  const fs::path root = folder() / below;
  if (!fs::is_directory(root)) return out;
  for (const auto& entry : fs::directory_iterator(root))
    if (fnmatch(pattern.c_str(), entry.path().filename().c_str(), 0) == 0) out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

Tensors load(const fs::path& path) {
  auto file = SafetensorsFile::open(path.string());
  if (!file) throw std::runtime_error(file.error().message);
  static const std::map<std::string, at::ScalarType> kTypes{{"F32", at::kFloat}, {"I64", at::kLong}, {"U8", at::kByte}};
  Tensors out;
  for (const TensorView& view : file->tensors()) {
    const auto type = kTypes.find(view.dtype);
    if (type == kTypes.end()) throw std::runtime_error(path.string() + ": " + view.name + " is " + view.dtype);
    at::Tensor tensor = at::empty(view.shape, type->second);
    std::memcpy(tensor.data_ptr(), view.data, size_t(view.size_bytes));
    out[view.name] = tensor;
  }
  return out;
}

nlohmann::json load_json(const fs::path& path) {
  std::ifstream in(path);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  return nlohmann::json::parse(in);
}

FunctionConfig function_of(const nlohmann::json& config) {
  FunctionConfig f;
  f.model = {"custom", config.at("patch"), config.at("img"), config.at("embed_dim"), config.at("depth"), config.at("heads"),
             config.value("mlp_ratio", 4.0), false};
  f.predictor = {config.at("pred_dim"), config.at("pred_depth"), config.value("pred_heads", f.model.num_heads), config.value("pred_mlp_ratio", 4.0)};
  return f;
}

std::string golden_name(const std::string& ours) {
  const std::string prefix = "context_encoder.";
  return ours.starts_with(prefix) ? "encoder." + ours.substr(prefix.size()) : ours;
}

namespace {

const at::Tensor& at_name(const Tensors& tensors, const std::string& name) {
  const auto it = tensors.find(name);
  if (it == tensors.end()) throw std::runtime_error("the goldens have no tensor " + name);
  return it->second;
}

void set_table(at::Tensor& table, const Tensors& weights, const std::string& name) {
  if (const auto it = weights.find(name); it != weights.end()) table.copy_(it->second.view(table.sizes()));
}

}  // namespace

void fill_state(model::State& state, const Tensors& weights, MissingTarget missing) {
  set_table(state.context_position, weights, "encoder.pos_embed");
  state.target_position.copy_(state.context_position);
  set_table(state.target_position, weights, "target_encoder.pos_embed");
  set_table(state.predictor_position, weights, "predictor.predictor_pos_embed");
  for (const auto& place : state.layout.tensors) {
    const at::Tensor& source = at_name(weights, golden_name(place.name));
    state.view(state.weights, place).copy_(source);
    if (place.network != model::Network::kContextEncoder) continue;
    const auto twin = weights.find(place.target_name());
    at::Tensor target = state.view(state.target, place);
    if (twin != weights.end()) target.copy_(twin->second);
    else target.copy_(missing == MissingTarget::kScaled ? source * 0.875f : source);
  }
}

float formula_value(const std::string& name, size_t dimensions, uint64_t seed, uint64_t index) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const unsigned char c : name) hash = (hash ^ c) * 0x100000001B3ull;
  const uint64_t z = mix64((hash ^ seed) + (index + 1) * 0x9E3779B97F4A7C15ull);
  const double r = double(int64_t(z >> 40) - (int64_t{1} << 23)) / double(int64_t{1} << 23);
  if (dimensions == 1 && name.ends_with("weight")) return float(1.0 + r / 4);
  if (name.ends_with("bias")) return float(r / 8);
  return float(name.ends_with("mask_token") ? r / 4 : r / 16);
}

void fill_formula(model::State& state, uint64_t seed) {
  const auto fill = [&](at::Tensor tensor, const std::string& name) {
    float* out = tensor.mutable_data_ptr<float>();
    for (int64_t i = 0; i < tensor.numel(); ++i) out[i] = formula_value(name, tensor.sizes().size(), seed, uint64_t(i));
  };
  for (const auto& place : state.layout.tensors) {
    fill(state.view(state.weights, place), golden_name(place.name));
    if (place.network == model::Network::kContextEncoder) fill(state.view(state.target, place), place.target_name());
  }
}

model::Tile tile_of(const at::Tensor& images_bchw, const Tensors& tensors, const std::string& context_prefix, const std::string& target_prefix) {
  model::Tile tile;
  tile.pixels = images_bchw.permute({0, 2, 3, 1}).contiguous();
  for (int i = 0; tensors.contains(context_prefix + std::to_string(i)); ++i) tile.contexts.push_back(tensors.at(context_prefix + std::to_string(i)));
  for (int i = 0; tensors.contains(target_prefix + std::to_string(i)); ++i) tile.targets.push_back(tensors.at(target_prefix + std::to_string(i)));
  if (tile.contexts.empty() || tile.targets.empty()) throw std::runtime_error("the goldens have no masks " + context_prefix + "0, " + target_prefix + "0");
  return tile;
}

double max_abs(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() != b.numel()) return std::numeric_limits<double>::infinity();
  const double worst = (a.reshape(-1).to(at::kDouble) - b.reshape(-1).to(at::kDouble)).abs().max().item<double>();
  return std::isfinite(worst) ? worst : std::numeric_limits<double>::infinity();
}

double relative(const at::Tensor& a, const at::Tensor& b) { return max_abs(a, b) / b.abs().max().item<double>(); }

namespace {

struct Measured {
  double difference = 0, tolerance = 0;
  int64_t count = 0;
};
std::map<std::string, Measured>& measured() {
  static std::map<std::string, Measured> all;
  return all;
}

class PrintMeasured : public testing::Environment {
  void TearDown() override {
    if (std::getenv("TESSERA_FIDELITY") == nullptr) return;
    std::printf("| item | tolerance | largest difference | comparisons |\n|---|---|---|---|\n");
    for (const auto& [item, m] : measured()) std::printf("| %s | %.2g | %.2g | %lld |\n", item.c_str(), m.tolerance, m.difference, static_cast<long long>(m.count));
  }
};
[[maybe_unused]] const testing::Environment* const kPrintMeasured = testing::AddGlobalTestEnvironment(new PrintMeasured);

}  // namespace

testing::AssertionResult within(const std::string& item, double difference, double tolerance) {
  Measured& m = measured()[item];
  m.difference = std::max(m.difference, difference), m.tolerance = std::max(m.tolerance, tolerance), ++m.count;
  if (difference <= tolerance) return testing::AssertionSuccess();  // NaN fails
  return testing::AssertionFailure() << item << ": differs by " << difference << ", tolerance " << tolerance;
}

at::Tensor without_key_bias(const std::string& name, const at::Tensor& tensor) {
  if (!name.ends_with("attn.qkv.bias")) return tensor;
  const int64_t d = tensor.numel() / 3;
  return at::cat({tensor.narrow(0, 0, d), tensor.narrow(0, 2 * d, d)});
}

}  // namespace tessera::goldens
