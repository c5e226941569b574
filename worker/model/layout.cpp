#include "worker/model/layout.h"

#include <numeric>

namespace tessera::model {
namespace {

constexpr int64_t kAlignFloats = 16;

struct Builder {
  Layout layout;

  void bucket(const std::string& name, Network network) {
    layout.buckets.push_back({name, network, 0, int(layout.tensors.size()), int(layout.tensors.size())});
  }
  void add(const std::string& name, std::vector<int64_t> shape) {
    Bucket& bucket = layout.buckets.back();
    TensorPlace place;
    place.name = name;
    place.count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    place.offset = bucket.size;
    place.bucket = int(layout.buckets.size()) - 1;
    place.network = bucket.network;
    place.decayed = shape.size() != 1 && !name.ends_with("bias");
    place.shape = std::move(shape);
    bucket.size += (place.count + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
    layout.tensors.push_back(std::move(place));
    bucket.last_tensor = int(layout.tensors.size());
  }
  void linear(const std::string& name, int64_t out, int64_t in) { add(name + ".weight", {out, in}), add(name + ".bias", {out}); }
  void norm(const std::string& name, int64_t d) { add(name + ".weight", {d}), add(name + ".bias", {d}); }
  void block(const std::string& name, int64_t d, int64_t hidden) {
    norm(name + ".norm1", d);
    linear(name + ".attn.qkv", 3 * d, d);
    linear(name + ".attn.proj", d, d);
    norm(name + ".norm2", d);
    linear(name + ".mlp.fc1", hidden, d);
    linear(name + ".mlp.fc2", d, hidden);
  }
};

}  // namespace

std::string TensorPlace::target_name() const {
  if (network != Network::kContextEncoder) return "";
  return "target_encoder." + name.substr(std::string("context_encoder.").size());
}

Layout Layout::make(const FunctionConfig& f) {
  Builder b;
  const int64_t d = f.model.embed_dim, patch = f.model.patch_size;
  const std::string encoder = "context_encoder.", predictor = "predictor.";
  b.bucket(encoder + "patch_embed", Network::kContextEncoder);
  b.add(encoder + "patch_embed.proj.weight", {d, 3, patch, patch});
  b.add(encoder + "patch_embed.proj.bias", {d});
  for (int64_t i = 0; i < f.model.depth; ++i) {
    const std::string name = encoder + "blocks." + std::to_string(i);
    b.bucket(name, Network::kContextEncoder);
    b.block(name, d, f.model.hidden_dim());
  }
  b.bucket(encoder + "norm", Network::kContextEncoder);
  b.norm(encoder + "norm", d);
  const int64_t p = f.predictor.embed_dim, hidden = int64_t(double(p) * f.predictor.mlp_ratio + 1e-6);
  b.bucket(predictor + "predictor_embed", Network::kPredictor);
  b.add(predictor + "mask_token", {1, 1, p});
  b.linear(predictor + "predictor_embed", p, d);
  for (int64_t i = 0; i < f.predictor.depth; ++i) {
    const std::string name = predictor + "predictor_blocks." + std::to_string(i);
    b.bucket(name, Network::kPredictor);
    b.block(name, p, hidden);
  }
  b.bucket(predictor + "predictor_proj", Network::kPredictor);
  b.norm(predictor + "predictor_norm", p);
  b.linear(predictor + "predictor_proj", d, p);
  for (const Bucket& bucket : b.layout.buckets) {
    b.layout.total_floats += bucket.size;
    if (bucket.network == Network::kContextEncoder) b.layout.target_floats += bucket.size;
  }
  return std::move(b.layout);
}

const TensorPlace* Layout::find(const std::string& name) const {
  for (const TensorPlace& place : tensors)
    if (place.name == name) return &place;
  return nullptr;
}

}  // namespace tessera::model
