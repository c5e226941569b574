#include "worker/model/state.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <algorithm>
#include <cmath>

#include "common/philox.h"
#include "worker/model/pieces.h"
#include "worker/collective/fixed_point.h"
#include "worker/model/backend.h"
#include "worker/model/parallel.h"

namespace tessera::model {
namespace {

constexpr double kInitStd = 0.02;

// Box-Muller in double over one Philox draw per pair of elements.
void fill_normal(float* out, int64_t count, uint64_t seed, const std::string& name, double std) {
  const uint64_t name_hash = hash64_bytes(name);
  for (int64_t pair = 0; 2 * pair < count; ++pair) {
    PhiloxStream stream(seed, Purpose::kInit, name_hash ^ uint64_t(pair), 0);
    const double u1 = 1.0 - stream.next_double(), u2 = stream.next_double();  // u1 in (0, 1]
    const double radius = std * std::sqrt(-2.0 * std::log(u1)), angle = 2.0 * M_PI * u2;
    out[2 * pair] = float(radius * std::cos(angle));
    if (2 * pair + 1 < count) out[2 * pair + 1] = float(radius * std::sin(angle));
  }
}

// Frozen 2-D sin-cos table [grid * grid, d]: first half of the channels the column, second half the row.
at::Tensor position_table(int64_t grid, int64_t d) {
  at::Tensor table = at::empty({grid * grid, d}, at::kFloat);
  float* out = table.mutable_data_ptr<float>();
  const int64_t quarter = d / 4;
  for (int64_t n = 0; n < grid * grid; ++n)
    for (int64_t k = 0; k < quarter; ++k) {
      const double omega = std::pow(10000.0, -double(k) / double(quarter)), x = double(n % grid) * omega, y = double(n / grid) * omega;
      float* row = out + n * d + k;
      row[0] = float(std::sin(x)), row[quarter] = float(std::cos(x));
      row[2 * quarter] = float(std::sin(y)), row[3 * quarter] = float(std::cos(y));
    }
  return table;
}

void init_tensor(float* out, const TensorPlace& place, const FunctionConfig& f) {
  if (place.name.ends_with(".bias")) return;
  if (place.shape.size() == 1) {  // LayerNorm weight
    for (int64_t i = 0; i < place.count; ++i) out[i] = 1.0f;
    return;
  }
  double std = kInitStd;
  const bool rescaled = place.name.ends_with("attn.proj.weight") || place.name.ends_with("mlp.fc2.weight");
  if (f.model.depth_rescale && rescaled) {
    const size_t at = place.name.find("blocks.") + 7;
    std /= std::sqrt(2.0 * double(std::stoll(place.name.substr(at)) + 1));
  }
  fill_normal(out, place.count, uint64_t(f.seed), place.name, std);
}

StateDigest role_digest(const Layout& layout, const FlatBuffers& role, const std::string& prefix, bool target) {
  std::vector<Piece> pieces = pieces_of(layout);
  if (target) std::erase_if(pieces, [](const Piece& piece) { return piece.place->network != Network::kContextEncoder; });
  std::vector<StateDigest> digests(pieces.size());
  at::parallel_for(0, int64_t(pieces.size()), kPiecesPerTask, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto& [place, begin, count] = pieces[size_t(i)];
      const float* values = role[size_t(place->bucket)].const_data_ptr<float>() + place->offset + begin;
      digests[size_t(i)] = digest_elements(values, count, begin, lane_seeds(target ? place->target_name() : prefix + place->name));
    }
  });
  StateDigest digest;
  for (const StateDigest& part : digests) digest += part;
  return digest;
}

}  // namespace

std::vector<Piece> pieces_of(const Layout& layout) {
  std::vector<Piece> pieces;
  for (const TensorPlace& place : layout.tensors)
    for (int64_t first = 0; first < place.count; first += kPieceFloats) pieces.push_back({&place, first, std::min(kPieceFloats, place.count - first)});
  return pieces;
}

LaneSeeds gradient_seeds(const TensorPlace& place) { return lane_seeds("gradient." + place.name); }

FlatBuffers make_buffers(const Layout& layout) {
  FlatBuffers out;
  for (const Bucket& bucket : layout.buckets) out.push_back(at::zeros({bucket.size}, at::kFloat));
  return out;
}

State State::empty(const FunctionConfig& f) {
  State s;
  s.layout = Layout::make(f);
  s.weights = make_buffers(s.layout);
  s.exp_avg = make_buffers(s.layout);
  s.exp_avg_sq = make_buffers(s.layout);
  for (const Bucket& bucket : s.layout.buckets)
    s.target.push_back(bucket.network == Network::kContextEncoder ? at::zeros({bucket.size}, at::kFloat) : at::Tensor());
  s.context_position = position_table(f.model.grid(), f.model.embed_dim);
  s.target_position = s.context_position.clone();
  s.predictor_position = position_table(f.model.grid(), f.predictor.embed_dim);
  if (f.reduction == "fixed32") s.exponents = at::full({int64_t(s.layout.tensors.size())}, collective::fixed_point::first_exponent(int(f.batch.tiles)), at::kFloat);
  return s;
}

State State::initial(const FunctionConfig& f) {
  State s = empty(f);
  for (const TensorPlace& place : s.layout.tensors) init_tensor(s.weights[size_t(place.bucket)].mutable_data_ptr<float>() + place.offset, place, f);
  for (size_t i = 0; i < s.target.size(); ++i)
    if (s.target[i].defined()) s.target[i].copy_(s.weights[i]);
  return s;
}

at::Tensor State::view(const FlatBuffers& role, const TensorPlace& place) const {
  return role[size_t(place.bucket)].narrow(0, place.offset, place.count).view(place.shape);
}

StateDigest State::digest() const {
  StateDigest digest = digest_without_target();
  digest += target_digest();
  return digest;
}

StateDigest State::target_digest() const { return on_device(weights) ? backend()->digest(*this, DigestOf::kTarget) : role_digest(layout, target, "", true); }

StateDigest State::digest_without_target() const {
  StateDigest digest;
  if (on_device(weights)) {
    digest = backend()->digest(*this, DigestOf::kTrained);
  } else {
    digest = role_digest(layout, weights, "", false);
    digest += role_digest(layout, exp_avg, "optimizer.exp_avg.", false);
    digest += role_digest(layout, exp_avg_sq, "optimizer.exp_avg_sq.", false);
  }
  digest += digest_scalar(uint64_t(adam_steps), lane_seeds("optimizer.step"));
  if (exponents.defined()) digest += digest_elements(exponents.const_data_ptr<float>(), exponents.numel(), 0, lane_seeds("reduction.exponents"));
  return digest;
}

StateDigest gradient_digest(const Layout& layout, const FlatBuffers& gradient) {
  return on_device(gradient) ? backend()->examine(layout, gradient).digest : role_digest(layout, gradient, "gradient.", false);
}

}  // namespace tessera::model
