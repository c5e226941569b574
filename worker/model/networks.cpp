#include "worker/model/networks.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/sum.h>

namespace tessera::model {
namespace {

int place_of(const Layout& layout, const std::string& name) {
  const TensorPlace* place = layout.find(name);
  TESSERA_CHECK(place != nullptr, name);
  return int(place - layout.tensors.data());
}

BlockPlaces block_places(const Layout& layout, const std::string& prefix) {
  const auto at = [&](const char* suffix) { return place_of(layout, prefix + suffix); };
  return {{at(".norm1.weight"), at(".norm1.bias")}, {at(".attn.qkv.weight"), at(".attn.qkv.bias")}, {at(".attn.proj.weight"), at(".attn.proj.bias")},
          {at(".norm2.weight"), at(".norm2.bias")}, {at(".mlp.fc1.weight"), at(".mlp.fc1.bias")},   {at(".mlp.fc2.weight"), at(".mlp.fc2.bias")}};
}

std::vector<BlockPlaces> all_blocks(const Layout& layout, const std::string& prefix) {
  std::vector<BlockPlaces> blocks;
  for (int i = 0; layout.find(prefix + std::to_string(i) + ".norm1.weight") != nullptr; ++i)
    blocks.push_back(block_places(layout, prefix + std::to_string(i)));
  return blocks;
}

// The sequences of the predictor: context tokens tiled over the targets, then query tokens repeated over the contexts.
at::Tensor assemble(const PredictorShape& s, const at::Tensor& context_rd, const at::Tensor& query_rd) {
  const int64_t p = context_rd.size(1);
  const auto context = context_rd.view({1, s.contexts * s.images, s.context_length, p}).expand({s.targets, -1, -1, -1});
  const auto query = query_rd.view({s.targets, 1, s.images, s.target_length, p}).expand({-1, s.contexts, -1, -1, -1});
  return at::cat({context.reshape({s.sequences(), s.context_length, p}), query.reshape({s.sequences(), s.target_length, p})}, 1)
      .view({s.sequences() * (s.context_length + s.target_length), p});
}

// The last write to the bucket of this tensor is done.
void whole(const Passes& passes, int place, const BucketReady& ready) {
  if (ready) ready(passes.bucket_of(place));
}

}  // namespace

EncoderPlaces encoder_places(const Layout& layout) {
  const auto at = [&](const char* name) { return place_of(layout, std::string("context_encoder.") + name); };
  return {at("patch_embed.proj.weight"), at("patch_embed.proj.bias"), at("norm.weight"), at("norm.bias"), all_blocks(layout, "context_encoder.blocks.")};
}

PredictorPlaces predictor_places(const Layout& layout) {
  const auto at = [&](const char* name) { return place_of(layout, std::string("predictor.") + name); };
  return {at("predictor_embed.weight"), at("predictor_embed.bias"), at("mask_token"), at("predictor_norm.weight"), at("predictor_norm.bias"),
          at("predictor_proj.weight"),  at("predictor_proj.bias"),  all_blocks(layout, "predictor.predictor_blocks.")};
}

at::Tensor encode(const Passes& passes, const Weights& w, const EncoderPlaces& places, const at::Tensor& patches_rd, const at::Tensor& position_rd,
                  int64_t b, int64_t heads, EncoderTape* tape) {
  const NextNorm last{{places.norm_w, places.norm_b}, NormFor::kStream};
  Joined x;
  x.sum_rd = passes.linear(w, patches_rd, places.patch_w, places.patch_b).add_(position_rd);
  x.norm = passes.ops().norm(w, x.sum_rd, places.blocks.empty() ? last.places : places.blocks[0].norm1, places.blocks.empty() ? last.use : NormFor::kProduct);
  if (tape) tape->patches_rd = patches_rd, tape->blocks.resize(places.blocks.size());
  for (size_t i = 0; i < places.blocks.size(); ++i) {
    const NextNorm next = i + 1 < places.blocks.size() ? NextNorm{places.blocks[i + 1].norm1, NormFor::kProduct} : last;
    x = passes.block(w, places.blocks[i], x, &next, {b, heads}, tape ? &tape->blocks[i] : nullptr);
  }
  if (tape) tape->last_rd = x.sum_rd, tape->norm = x.norm;
  return x.norm.out_rd;
}

void encode_backward(const Passes& passes, const Weights& w, const EncoderPlaces& places, EncoderTape tape, const at::Tensor& dout_rd, int64_t b,
                     int64_t heads, FlatBuffers& gradient, const BucketReady& ready) {
  Flow dx = passes.ops().norm_backward(w, tape.last_rd, tape.norm, dout_rd, {}, {places.norm_w, places.norm_b}, gradient);
  whole(passes, places.norm_w, ready);
  for (size_t i = places.blocks.size(); i-- > 0;) {
    dx = passes.block_backward(w, places.blocks[i], tape.blocks[i], dx, {b, heads}, gradient);
    tape.blocks[i] = {};
    whole(passes, places.blocks[i].norm1.weight, ready);
  }
  passes.ops().linear_backward(w, tape.patches_rd, dx, {places.patch_w, places.patch_b}, gradient, false);
  whole(passes, places.patch_w, ready);
}

at::Tensor predict(const Passes& passes, const Weights& w, const PredictorPlaces& places, const PredictorShape& s, const at::Tensor& encoded_rd,
                   const at::Tensor& context_position_rd, const at::Tensor& query_position_rd, PredictorTape* tape) {
  const at::Tensor context_rd = passes.linear(w, encoded_rd, places.embed_w, places.embed_b).add_(context_position_rd);
  const at::Tensor query_rd = query_position_rd + passes.weight(w.full, places.mask_token).view({1, -1});
  const size_t depth = places.blocks.size();
  Joined x;
  x.sum_rd = assemble(s, context_rd, query_rd);
  x.norm = passes.ops().norm(w, x.sum_rd, places.blocks[0].norm1, NormFor::kProduct);
  if (tape) tape->encoded_rd = encoded_rd, tape->blocks.resize(depth);
  for (size_t i = 0; i < depth; ++i) {
    const NextNorm next{i + 1 < depth ? places.blocks[i + 1].norm1 : NormPlaces{places.norm_w, places.norm_b}, NormFor::kProduct};
    x = passes.block(w, places.blocks[i], x, &next, s.in_block(i, depth), tape ? &tape->blocks[i] : nullptr);
  }
  if (tape) tape->last_rd = x.sum_rd, tape->norm = x.norm;
  return passes.linear(w, x.norm.out_rd, places.proj_w, places.proj_b);
}

at::Tensor predict_backward(const Passes& passes, const Weights& w, const PredictorPlaces& places, const PredictorShape& s, PredictorTape tape,
                            const at::Tensor& dprediction_rd, FlatBuffers& gradient, const BucketReady& ready) {
  const at::Tensor dnorm = passes.ops().linear_backward(w, tape.norm.out_rd, dprediction_rd, {places.proj_w, places.proj_b}, gradient, true);
  Flow dx_rd = passes.ops().norm_backward(w, tape.last_rd, tape.norm, dnorm, {}, {places.norm_w, places.norm_b}, gradient);
  whole(passes, places.norm_w, ready);
  const int64_t p = tape.last_rd.size(1), length = s.context_length + s.target_length;
  for (size_t i = places.blocks.size(); i-- > 0;) {
    dx_rd = passes.block_backward(w, places.blocks[i], tape.blocks[i], dx_rd, s.in_block(i, places.blocks.size()), gradient);
    tape.blocks[i] = {};
    whole(passes, places.blocks[i].norm1.weight, ready);
  }
  const at::Tensor din = dx_rd.full_rd.view({s.sequences(), length, p});
  at::Tensor dtoken = passes.weight(gradient, places.mask_token).view({-1});
  at::sum_out(dtoken, din.narrow(1, s.context_length, s.target_length).reshape({-1, p}), at::IntArrayRef{0});
  const at::Tensor dcontext_rd = din.narrow(1, 0, s.context_length)
                                     .reshape({s.targets, s.contexts * s.images * s.context_length, p})
                                     .sum(0);
  at::Tensor dencoded_rd = passes.ops().linear_backward(w, tape.encoded_rd, dcontext_rd, {places.embed_w, places.embed_b}, gradient, true);
  whole(passes, places.mask_token, ready);
  return dencoded_rd;
}

}  // namespace tessera::model
