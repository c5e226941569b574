#include "worker/trainer/reduction.h"

#include <ATen/ops/from_blob.h>
#include <cstring>
#include <functional>
#include <limits>

#include "worker/collective/fixed_point.h"
#include "worker/model/backend.h"
#include "worker/trainer/fixed_tensors.h"

namespace tessera::trainer {
namespace {

namespace fixed_point = collective::fixed_point;
using collective::Collective;
using collective::SharedArena;
using model::FlatBuffers;
using Maker = std::function<FlatBuffers()>;

int64_t bytes_of(const FlatBuffers& buffers) {
  int64_t bytes = 0;
  for (const auto& buffer : buffers) bytes += int64_t(buffer.nbytes());
  return bytes;
}

float* floats(at::Tensor& t) { return t.mutable_data_ptr<float>(); }

// The defined sum: a stack of buffers that merges as a binary counter; its lower part ends as this rank's maximal nodes.
class TreeReduction : public Reduction {
 public:
  TreeReduction(const FunctionConfig& function, const model::Layout& layout, Maker make) : tiles_(int(function.batch.tiles)), make_(std::move(make)), sizes_(layout.buckets), stack_(tiles_, {0, 0}) {}

  void begin(const model::State&, const TileRange& range) override {
    stack_ = collective::NodeStack(tiles_, range);
    alone_ = false;
  }
  FlatBuffers& tile_buffer(TileIndex tile) override {
    top_ = stack_.nodes().size();
    merges_ = size_t(stack_.push(tile));
    if (top_ == buffers_.size()) buffers_.push_back(make_());
    return buffers_[top_];
  }
  void merge(size_t bucket) override {
    for (size_t i = 0; i < merges_; ++i) model::add_into(buffers_[top_ - i - 1][bucket], buffers_[top_ - i][bucket]);
  }
  Status reduce(Collective& collective, size_t bucket) override {
    if (collective.alone()) {  // every tile is here: the one node is the sum
      alone_ = true;
      return {};
    }
    if (whole_.empty()) whole_ = make_();
    std::vector<collective::NodeBuffer> nodes;
    for (size_t i = 0; i < stack_.nodes().size(); ++i) nodes.push_back({stack_.nodes()[i], floats(buffers_[i][bucket])});
    return collective.exchange(nodes, sizes_[bucket].size, floats(whole_[bucket]));
  }
  FlatBuffers& whole() override { return alone_ ? buffers_[0] : whole_; }
  int64_t bytes() const override {
    int64_t bytes = bytes_of(whole_);
    for (const auto& buffers : buffers_) bytes += bytes_of(buffers);
    return bytes;
  }

 private:
  const int tiles_;
  const Maker make_;
  const std::vector<model::Bucket> sizes_;
  FlatBuffers whole_;  // made when there are peers
  bool alone_ = false;
  std::vector<FlatBuffers> buffers_;
  collective::NodeStack stack_;
  size_t top_ = 0, merges_ = 0;  // of the newest tile
};

// Integers with one exponent per tensor, which is state. Tiles are written where the sum comes to lie later; the only
// other buffer is the integers' sum. What does not fit is counted per tensor beside it, and ends as Inf (as NaN, if it was
// not finite) in the sum, so that the step is skipped by the rule for gradients that are not finite.
class FixedReduction : public Reduction {
 public:
  FixedReduction(const FunctionConfig& function, const model::Layout& layout, SharedArena& arena)
      : tiles_(int(function.batch.tiles)),
        layout_(layout),
        whole_(arena_buffers(layout, arena, at::kFloat)),
        sums_(arena_buffers(layout, arena, at::kInt)),
        faults_(std::static_pointer_cast<int32_t>(arena.allocate(fault_count() * int64_t(sizeof(int32_t))))) {}

  void begin(const model::State& state, const TileRange& range) override {
    const float* exponents = state.exponents.const_data_ptr<float>();
    exponents_.assign(exponents, exponents + layout_.tensors.size());
    begin_ = range.begin;
    std::memset(faults_.get(), 0, size_t(fault_count()) * sizeof(int32_t));
    if (!range.empty()) return;
    for (auto& sum : sums_) std::memset(sum.mutable_data_ptr(), 0, sum.nbytes());
  }
  FlatBuffers& tile_buffer(TileIndex tile) override {
    first_ = tile == begin_;
    return whole_;
  }
  void merge(size_t bucket) override {
    each_tensor(bucket, [&](size_t t, const model::TensorPlace& place) {
      const auto fit = fixed_point::add_tile(floats(whole_[bucket]) + place.offset, place.count, exponents_[t], fixed_point::limit_of(tiles_), first_,
                                             sums_[bucket].mutable_data_ptr<int32_t>() + place.offset);
      faults_.get()[2 * t] += fit == fixed_point::Fit::kTooLarge;
      faults_.get()[2 * t + 1] += fit == fixed_point::Fit::kNotFinite;
    });
  }
  Status reduce(Collective& collective, size_t bucket) override {
    auto* const sum = sums_[bucket].mutable_data_ptr<int32_t>();
    TESSERA_TRY(collective.sum_integers(sum, sums_[bucket].numel()));
    each_tensor(bucket, [&](size_t t, const model::TensorPlace& place) { fixed_point::to_floats(sum + place.offset, place.count, exponents_[t], floats(whole_[bucket]) + place.offset); });
    return {};
  }
  Status finish(Collective& collective) override {
    TESSERA_TRY(collective.sum_integers(faults_.get(), fault_count()));
    for (size_t t = 0; t < layout_.tensors.size(); ++t) {
      const auto& place = layout_.tensors[t];
      float& told = floats(whole_[size_t(place.bucket)])[place.offset];
      if (faults_.get()[2 * t] != 0) told = std::numeric_limits<float>::infinity();
      if (faults_.get()[2 * t + 1] != 0) told = std::numeric_limits<float>::quiet_NaN();
    }
    return {};
  }
  FlatBuffers& whole() override { return whole_; }
  void advance(model::State& state) const override {
    float* exponents = state.exponents.mutable_data_ptr<float>();
    for (size_t t = 0; t < layout_.tensors.size(); ++t) {
      const auto& place = layout_.tensors[t];
      const float most = fixed_point::largest(whole_[size_t(place.bucket)].const_data_ptr<float>() + place.offset, place.count);
      exponents[t] = float(fixed_point::next_exponent(int(exponents[t]), most, tiles_));
    }
  }
  int64_t bytes() const override { return bytes_of(whole_) + bytes_of(sums_); }

 private:
  template <typename Do>
  void each_tensor(size_t bucket, const Do& act) const {
    for (int t = layout_.buckets[bucket].first_tensor; t < layout_.buckets[bucket].last_tensor; ++t) act(size_t(t), layout_.tensors[size_t(t)]);
  }
  int64_t fault_count() const { return 2 * int64_t(layout_.tensors.size()); }

  const int tiles_;
  const model::Layout layout_;
  FlatBuffers whole_, sums_;
  std::shared_ptr<int32_t> faults_;  // per tensor: tiles that were too large, tiles that were not finite
  std::vector<int> exponents_;       // of this step
  TileIndex begin_ = 0;  // of the range
  bool first_ = true;    // the newest tile is the range's first
};

// A plain sum of this rank's tiles in order, then the library's over the ranks: other bits for another number of ranks.
class FastReduction : public Reduction {
 public:
  explicit FastReduction(const Maker& make) : whole_(make()), tile_(make()) {}
  void begin(const model::State&, const TileRange& range) override {
    begin_ = range.begin;
    if (!range.empty()) return;
    for (auto& sum : whole_) sum.zero_();
  }
  FlatBuffers& tile_buffer(TileIndex tile) override {
    first_ = tile == begin_;
    return tile_;
  }
  void merge(size_t bucket) override {
    if (first_) whole_[bucket].copy_(tile_[bucket]);
    else model::add_into(whole_[bucket], tile_[bucket]);
  }
  Status reduce(Collective& collective, size_t bucket) override { return collective.sum_floats(floats(whole_[bucket]), whole_[bucket].numel()); }
  FlatBuffers& whole() override { return whole_; }
  int64_t bytes() const override { return bytes_of(whole_) + bytes_of(tile_); }

 private:
  FlatBuffers whole_, tile_;
  TileIndex begin_ = 0;  // of the range
  bool first_ = true;    // the newest tile is the range's first
};

}  // namespace

FlatBuffers arena_buffers(const model::Layout& layout, SharedArena& arena, at::ScalarType type) {
  const std::shared_ptr<void> memory = arena.allocate(layout.total_floats * int64_t(sizeof(float)));
  FlatBuffers out;
  float* at = static_cast<float*>(memory.get());
  for (const auto& bucket : layout.buckets) {
    out.push_back(at::from_blob(at, {bucket.size}, [memory](void*) {}, at::TensorOptions().dtype(type)));
    at += bucket.size;
  }
  return out;
}

Result<std::unique_ptr<Reduction>> Reduction::make(const FunctionConfig& function, const model::Layout& layout, SharedArena& arena, const std::string& device) {
  const bool gpu = model::is_cuda(device);
  if (function.reduction == "fixed32" && gpu) return make_fixed_on_device(function, layout, model::make_buffers(layout, device));
  if (function.reduction == "fixed32") return std::make_unique<FixedReduction>(function, layout, arena);
  const Maker make = [layout, &arena, device, gpu] { return gpu ? model::make_buffers(layout, device) : arena_buffers(layout, arena, at::kFloat); };
  if (function.reduction == "fast") return std::make_unique<FastReduction>(make);
  return std::make_unique<TreeReduction>(function, layout, make);
}

}  // namespace tessera::trainer
