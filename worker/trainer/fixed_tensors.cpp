#include "worker/trainer/fixed_tensors.h"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <cmath>
#include <limits>

#include "worker/collective/fixed_point.h"

namespace tessera::trainer {
namespace {

namespace fixed_point = collective::fixed_point;
using model::FlatBuffers;

class FixedOnDevice : public Reduction {
 public:
  FixedOnDevice(const FunctionConfig& function, const model::Layout& layout, FlatBuffers whole) : tiles_(int(function.batch.tiles)), layout_(layout), whole_(std::move(whole)) {
    for (const auto& buffer : whole_) sums_.push_back(at::zeros_like(buffer, buffer.options().dtype(at::kInt)));
    faults_ = at::zeros({int64_t(layout_.tensors.size()), 2}, sums_[0].options());
  }
  void begin(const model::State& state, const TileRange& range) override {
    const float* exponents = state.exponents.const_data_ptr<float>();
    exponents_.assign(exponents, exponents + layout_.tensors.size());
    begin_ = range.begin;
    faults_.zero_();
    for (size_t i = 0; range.empty() && i < sums_.size(); ++i) sums_[i].zero_();
  }
  FlatBuffers& tile_buffer(TileIndex tile) override {
    first_ = tile == begin_;
    return whole_;
  }
  void merge(size_t bucket) override {
    each_tensor(bucket, [&](size_t t, const model::TensorPlace& place) {
      fixed_tensors::add_tile(part(whole_, place), exponents_[t], fixed_point::limit_of(tiles_), first_, part(sums_, place), faults_.select(0, int64_t(t)));
    });
  }
  Status reduce(collective::Collective& collective, size_t bucket) override {
    TESSERA_TRY(collective.sum_integers(sums_[bucket].mutable_data_ptr<int32_t>(), sums_[bucket].numel()));
    each_tensor(bucket, [&](size_t t, const model::TensorPlace& place) { fixed_tensors::to_floats(part(sums_, place), exponents_[t], part(whole_, place)); });
    return {};
  }
  Status finish(collective::Collective& collective) override {
    TESSERA_TRY(collective.sum_integers(faults_.mutable_data_ptr<int32_t>(), faults_.numel()));
    const at::Tensor faults = faults_.cpu();  // which also waits for the buckets' last operations on this thread's stream
    const int32_t* count = faults.const_data_ptr<int32_t>();
    for (size_t t = 0; t < layout_.tensors.size(); ++t) {
      const double told = count[2 * t + 1] != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
      if (count[2 * t] != 0 || count[2 * t + 1] != 0) part(whole_, layout_.tensors[t]).narrow(0, 0, 1).fill_(told);
    }
    (void)faults_.cpu();
    return {};
  }
  FlatBuffers& whole() override { return whole_; }
  void advance(model::State& state) const override {
    std::vector<at::Tensor> parts;
    for (const auto& place : layout_.tensors) parts.push_back(part(whole_, place));
    const std::vector<float> most = fixed_tensors::largest_of(parts);
    float* exponents = state.exponents.mutable_data_ptr<float>();
    for (size_t t = 0; t < most.size(); ++t) exponents[t] = float(fixed_point::next_exponent(int(exponents[t]), most[t], tiles_));
  }
  int64_t bytes() const override { return 8 * layout_.total_floats; }

 private:
  static at::Tensor part(const FlatBuffers& buffers, const model::TensorPlace& place) { return buffers[size_t(place.bucket)].narrow(0, place.offset, place.count); }
  template <typename Do>
  void each_tensor(size_t bucket, const Do& act) const {
    for (int t = layout_.buckets[bucket].first_tensor; t < layout_.buckets[bucket].last_tensor; ++t) act(size_t(t), layout_.tensors[size_t(t)]);
  }

  const int tiles_;
  const model::Layout layout_;
  FlatBuffers whole_, sums_;
  at::Tensor faults_;  // [tensors, 2]
  std::vector<int> exponents_;
  TileIndex begin_ = 0;  // of the range
  bool first_ = true;    // the newest tile is the range's first
};

}  // namespace

namespace fixed_tensors {

void add_tile(const at::Tensor& g, int exponent, int32_t limit, bool first, at::Tensor sum, at::Tensor faults) {
  const double most = double(fixed_point::float_limit(limit)), scale = std::ldexp(1.0, exponent);
  const at::Tensor x = g.mul(scale), low = at::where(x.gt(-most), x, -most);  // NaN too
  const at::Tensor rounded = at::where(low.lt(most), low, most).round().to(at::kInt);
  if (first) sum.copy_(rounded);
  else sum.add_(rounded);
  const at::Tensor largest = g.abs().max(), finite = at::isfinite(largest);
  faults.select(0, 0).add_(finite.logical_and(largest.to(at::kDouble).mul(scale).gt(most)).to(at::kInt));
  faults.select(0, 1).add_(finite.logical_not().to(at::kInt));
}

void to_floats(const at::Tensor& sum, int exponent, at::Tensor g) { g.copy_(sum).mul_(std::ldexp(1.0, -exponent)); }

std::vector<float> largest_of(const std::vector<at::Tensor>& parts) {
  std::vector<at::Tensor> most;
  for (const auto& part : parts) most.push_back(part.abs().max());
  const at::Tensor host = at::stack(most).cpu();
  return {host.const_data_ptr<float>(), host.const_data_ptr<float>() + host.numel()};
}

}  // namespace fixed_tensors

std::unique_ptr<Reduction> make_fixed_on_device(const FunctionConfig& function, const model::Layout& layout, model::FlatBuffers whole) {
  return std::make_unique<FixedOnDevice>(function, layout, std::move(whole));
}

}  // namespace tessera::trainer
