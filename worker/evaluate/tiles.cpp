#include "worker/evaluate/tiles.h"

#include <ATen/ops/empty.h>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <unistd.h>

#include "common/file.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kMostSteps = 1000000;

at::Tensor mask_tensor(const std::vector<uint16_t>& list, int64_t images, int64_t length) {
  at::Tensor out = at::empty({images, length}, at::kLong);
  std::copy(list.begin(), list.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

}  // namespace

Result<TileReader> TileReader::open(const FunctionConfig& function, const std::string& data, int threads) {
  FunctionConfig wide = function;
  wide.steps = std::max(wide.steps, kMostSteps);
  wide.data.manifest_digest = "auto";  // the data may be another's than the run's
  const auto temporary = std::filesystem::temp_directory_path() / ("tessera-function-" + std::to_string(::getpid()) + ".yaml");
  TESSERA_TRY(write_file_atomic(temporary.string(), print_function(wide)));
  auto source = SampleSource::open(data, threads, {"--function", temporary.string()});
  std::filesystem::remove(temporary);
  if (!source) return tl::unexpected(source.error());
  return TileReader(std::move(wide), std::move(*source));
}

Result<SeenTile> TileReader::read(int64_t index) {
  const int64_t tiles = function_.batch.tiles;
  TESSERA_ASSIGN(auto answer, source_->tile(Step(index / tiles), TileIndex(index % tiles), tile_pixel_bytes(function_)));
  SeenTile out{std::move(answer.first), {}};
  const proto::TileHeader& h = out.header;
  const int64_t images = int64_t(h.sample_ids.size());
  out.tile.pixels = at::empty({images, h.image_size, h.image_size, 3}, at::kByte);
  if (int64_t(answer.second.size()) != out.tile.pixels.numel()) return fail(ErrorCode::kRetry, "the loader's tile was damaged on the way");
  std::memcpy(out.tile.pixels.mutable_data_ptr(), answer.second.data(), answer.second.size());
  for (const auto& list : h.contexts) out.tile.contexts.push_back(mask_tensor(list, images, h.context_length));
  for (const auto& list : h.targets) out.tile.targets.push_back(mask_tensor(list, images, h.target_length));
  return out;
}

BlockBox block_box(const proto::TileHeader& h, int64_t target, int64_t image) {
  int64_t top = h.grid, left = h.grid, bottom = 0, right = 0;
  for (int64_t i = 0; i < h.target_length; ++i) {
    const int64_t p = h.targets[size_t(target)][size_t(image * h.target_length + i)], y = p / h.grid, x = p % h.grid;
    top = std::min(top, y), bottom = std::max(bottom, y + 1), left = std::min(left, x), right = std::max(right, x + 1);
  }
  return {top, left, bottom - top, right - left};
}

}  // namespace tessera::evaluate
