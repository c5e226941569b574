#include "worker/trainer/standby.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "common/block_size.h"
#include "worker/model/backend.h"

namespace tessera::trainer {
namespace {

using nlohmann::json;

// One line, without its end; nullopt at the end of the input.
std::optional<std::string> read_line(int descriptor) {
  std::string line;
  for (char c; ::read(descriptor, &c, 1) == 1;) {
    if (c == '\n') return line;
    line += c;
  }
  return std::nullopt;
}

Result<WarmEngine> prepare(const std::string& line) {
  const json doc = json::parse(line, nullptr, false);
  if (!doc.is_object() || !doc.contains("function")) return fail(ErrorCode::kInternal, "[standby] the daemon's first line names no function");
  WarmEngine warm{doc.value("function", ""), doc.value("device", ""), nullptr};
  if (warm.device.empty() || warm.function_yaml.empty()) return warm;
  TESSERA_ASSIGN(const FunctionConfig function, parse_function(warm.function_yaml));
  TESSERA_ASSIGN(warm.engine, warm_engine(function, warm.device));
  return warm;
}

}  // namespace

Result<std::unique_ptr<model::Engine>> warm_engine(const FunctionConfig& function, const std::string& device) {
  TESSERA_ASSIGN(std::unique_ptr<model::Engine> engine, model::Engine::make(function, device));
  const int64_t b = function.batch.tile_size, size = function.model.image_size, patches = function.model.grid() * function.model.grid();
  model::Tile tile;
  tile.pixels = at::zeros({b, size, size, 3}, at::kByte);
  const auto mask = [&](int64_t length) { return at::arange(length, at::kLong).unsqueeze(0).repeat({b, 1}); };
  const MaskCounts counts = mask_counts(function.masks);
  for (int64_t i = 0; i < counts.contexts; ++i) tile.contexts.push_back(mask(std::max<int64_t>(1, patches / 2)));
  for (int64_t i = 0; i < counts.targets; ++i) tile.targets.push_back(mask(std::max<int64_t>(1, patches / 5)));
  const model::State state = model::to_device(model::State::empty(function), function.precision, device);
  model::FlatBuffers gradient = model::make_buffers(state.layout, device);
  engine->gradient(state, tile, gradient, false);
  return engine;
}

Result<std::optional<Standby>> stand_by(int descriptor) {
  const auto first = read_line(descriptor);
  if (!first) return std::nullopt;
  Standby standby;
  TESSERA_ASSIGN(standby.warm, prepare(*first));
  const auto order = read_line(descriptor);
  if (!order) return std::nullopt;
  const json doc = json::parse(*order, nullptr, false);
  if (!doc.is_object() || !doc.contains("worker_id") || !doc["worker_id"].is_string() || !doc.contains("incarnation") || !doc["incarnation"].is_number_unsigned())
    return fail(ErrorCode::kInternal, "[standby] the daemon's second line is no order: " + *order);
  standby.order = {doc["worker_id"].get<std::string>(), doc["incarnation"].get<uint64_t>(), doc.value("device", standby.warm.device)};
  return standby;
}

}  // namespace tessera::trainer
