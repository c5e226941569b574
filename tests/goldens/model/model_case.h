// A golden model case (model_*): configuration, stored numbers, a state with its weights, and its tile.
#pragma once

#include "tests/goldens/model/goldens.h"

namespace tessera::goldens {

struct Case {
  nlohmann::json meta;
  Tensors io;
  FunctionConfig function;
  model::State state;
  model::Tile tile;
};

inline Case load_case(const std::filesystem::path& path, const std::string& precision = "fp32") {
  Case c;
  c.meta = load_json(path / "meta.json");
  c.io = load(path / "io.safetensors");
  c.function = function_of(c.meta.at("config"));
  c.function.precision = precision;
  c.state = model::State::empty(c.function);
  if (std::filesystem::exists(path / "weights.safetensors"))
    fill_state(c.state, load(path / "weights.safetensors"), MissingTarget::kScaled);
  else
    fill_formula(c.state, c.meta.at("seed").get<uint64_t>());
  c.tile = tile_of(c.io.at("images_u8"), c.io, "masks_enc.", "masks_pred.");
  return c;
}

inline std::map<std::string, at::Tensor> by_golden_name(const model::TileOutputs& out) {
  return {{"patch_embed", out.patch_embed_bnd},    {"context_out", out.context_bkd},  {"target_out", out.target_bnd},
          {"target_normed", out.target_normed_bnd}, {"target_masked", out.wanted_bkd}, {"pred_out", out.prediction_bkd}};
}

}  // namespace tessera::goldens
