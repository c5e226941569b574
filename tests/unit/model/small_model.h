// A small function, a state and tiles made by Philox, for tests.
#pragma once

#include <ATen/ATen.h>

#include "common/config.h"
#include "common/philox.h"
#include "worker/model/engine.h"

namespace tessera::test {

inline FunctionConfig small_function() {
  FunctionConfig f;
  f.model = {"custom", 8, 48, 48, 2, 3, 4.0, false};
  f.predictor = {36, 2, 3, 4.0};
  return f;
}

// b images; masks of the given lengths, ascending, distinct patches drawn by `seed`.
inline model::Tile make_tile(const FunctionConfig& f, int64_t b, int64_t kept, int64_t wanted, uint64_t seed, int contexts = 1, int targets = 4) {
  const int64_t patches = f.model.grid() * f.model.grid(), size = f.model.image_size;
  PhiloxStream random(seed, Purpose::kProbe, 0, 0);
  model::Tile tile;
  tile.pixels = at::empty({b, size, size, 3}, at::kByte);
  for (int64_t i = 0; i < tile.pixels.numel(); ++i) tile.pixels.mutable_data_ptr<uint8_t>()[i] = uint8_t(random.next_u32());
  const auto mask = [&](int64_t count) {
    at::Tensor out = at::empty({b, count}, at::kLong);
    for (int64_t row = 0; row < b; ++row) {
      std::vector<int64_t> order(static_cast<size_t>(patches));
      for (int64_t i = 0; i < patches; ++i) order[size_t(i)] = i;
      for (int64_t i = 0; i < count; ++i) std::swap(order[size_t(i)], order[size_t(i + random.next_below(uint32_t(patches - i)))]);
      std::sort(order.begin(), order.begin() + count);
      std::copy(order.begin(), order.begin() + count, out.mutable_data_ptr<int64_t>() + row * count);
    }
    return out;
  };
  for (int i = 0; i < contexts; ++i) tile.contexts.push_back(mask(kept));
  for (int i = 0; i < targets; ++i) tile.targets.push_back(mask(wanted));
  return tile;
}

inline at::Tensor concatenated(const model::FlatBuffers& buffers) {
  std::vector<at::Tensor> parts;
  for (const auto& buffer : buffers)
    if (buffer.defined()) parts.push_back(buffer);
  return at::cat(parts);
}

}  // namespace tessera::test
