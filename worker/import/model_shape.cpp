#include "worker/import/model_shape.h"

#include <cmath>

#include "worker/import/tensor_bytes.h"

namespace tessera::import {
namespace {

struct Variant {
  const char* name;
  int64_t dim, depth, heads, hidden;
};
constexpr Variant kVariants[] = {{"vit_tiny", 192, 12, 3, 768},    {"vit_small", 384, 12, 6, 1536},   {"vit_base", 768, 12, 12, 3072},
                                 {"vit_large", 1024, 24, 16, 4096}, {"vit_huge", 1280, 32, 16, 5120}, {"vit_giant", 1408, 40, 16, 6144}};

Result<std::vector<int64_t>> need(const ShapeOf& shape_of, const std::string& name, size_t dimensions) {
  const auto shape = shape_of(name);
  if (!shape) return fail(ErrorCode::kFixData, name + " is missing: this is no I-JEPA checkpoint");
  bool fits = shape->size() == dimensions;
  for (const int64_t size : *shape) fits = fits && size > 0 && size < (int64_t{1} << 31);
  if (!fits) return fail(ErrorCode::kFixData, name + " is " + shape_text(*shape) + ", " + std::to_string(dimensions) + " dimensions are expected");
  return *shape;
}

int64_t depth_of(const ShapeOf& shape_of, const std::string& prefix) {
  int64_t depth = 0;
  while (depth < 256 && shape_of(prefix + std::to_string(depth) + ".norm1.weight")) ++depth;
  return depth;
}

// The ratio that gives this hidden width again: int(dim * ratio + 1e-6).
double ratio_of(int64_t hidden, int64_t dim) { return double(hidden) / double(dim); }

}  // namespace

Result<FunctionConfig> function_of_shapes(const ShapeOf& shape_of, int64_t num_heads) {
  TESSERA_ASSIGN(const auto patch, need(shape_of, "encoder.patch_embed.proj.weight", 4));
  TESSERA_ASSIGN(const auto table, need(shape_of, "encoder.pos_embed", 3));
  TESSERA_ASSIGN(const auto hidden, need(shape_of, "encoder.blocks.0.mlp.fc1.weight", 2));
  const int64_t dim = patch[0], depth = depth_of(shape_of, "encoder.blocks."), grid = std::llround(std::sqrt(double(table[1])));
  if (patch[1] != 3 || patch[2] != patch[3])
    return fail(ErrorCode::kFixData, "encoder.patch_embed.proj.weight is " + shape_text(patch) + "; three channels and square patches are expected");
  if (table[0] != 1 || grid * grid != table[1] || table[2] != dim)
    return fail(ErrorCode::kFixData, "encoder.pos_embed is " + shape_text(table) + "; [1, N, " + std::to_string(dim) + "] with a square number N is expected");
  FunctionConfig f;
  f.model = {"custom", patch[2], patch[2] * grid, dim, depth, num_heads, ratio_of(hidden[0], dim), false};
  for (const Variant& v : kVariants)
    if (v.dim == dim && v.depth == depth && v.hidden == hidden[0] && (num_heads == 0 || num_heads == v.heads)) f.model.name = v.name, f.model.num_heads = v.heads;
  if (f.model.num_heads == 0)
    return fail(ErrorCode::kUsage, "no published variant has width " + std::to_string(dim) + " and depth " + std::to_string(depth) +
                                       ", and the file does not say how many attention heads it has; add --heads N or --config FILE");
  if (dim % f.model.num_heads != 0)
    return fail(ErrorCode::kUsage, "--heads " + std::to_string(num_heads) + " does not divide the width " + std::to_string(dim));
  f.predictor.num_heads = f.model.num_heads;
  if (shape_of("predictor.predictor_embed.weight")) {
    TESSERA_ASSIGN(const auto embed, need(shape_of, "predictor.predictor_embed.weight", 2));
    TESSERA_ASSIGN(const auto mlp, need(shape_of, "predictor.predictor_blocks.0.mlp.fc1.weight", 2));
    f.predictor.embed_dim = embed[0];
    f.predictor.depth = depth_of(shape_of, "predictor.predictor_blocks.");
    f.predictor.mlp_ratio = ratio_of(mlp[0], embed[0]);
  }
  return f;
}

}  // namespace tessera::import
