// Makes tiles: batch[step][tile] as a pure function of (function config, dataset, step, tile). Which loader, which thread
// and when never matters; everything that is kept between calls is a cache.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/ids.h"
#include "common/result.h"
#include "data_loader/dataset/dataset.h"
#include "data_loader/masking/masking.h"
#include "data_loader/order/order.h"
#include "data_loader/transform/sample_transform.h"
#include "proto/messages.h"

namespace tessera::data {

using Pixels = std::shared_ptr<const std::vector<uint8_t>>;

struct MadeTile {
  proto::TileHeader header;  // all but request_id
  Pixels pixels;             // images x S x S x 3, uint8 NHWC; null when they went elsewhere
  std::string grey_reason;   // of the last sample that became grey
};
struct MadeSamples {
  proto::SampleTile tile;  // all but request_id
  Pixels pixels;
};
struct StageSeconds {
  double read = 0, decode = 0, resize = 0, mask = 0;
};

// Pixels travel in frames of this size at most; a SampleTile is one frame of at most kMaxSampleBytes.
inline constexpr int64_t kFrameBytes = 1 << 20;
inline constexpr int64_t kMaxSampleBytes = 3 << 20;

// One per thread.
class TileMaker {
 public:
  // Error: kFixConfig (interpolation).
  static Result<TileMaker> create(std::shared_ptr<const Dataset> dataset, const FunctionConfig& function);

  // order -> read, checked against the manifest's hash -> decode -> crop -> resize -> masks of the whole group -> header.
  // Errors: kFixData: a sample's bytes differ from the manifest, or do not decode and function.data.undecodable is fail;
  // the sentence names shard, key and byte. kFixConfig: fewer samples than a step; masks. kIo: the disk. kUsage: step or
  // tile out of range.
  // into: where to put the pixels (tile_pixel_bytes of the function); empty: a buffer of their own, in MadeTile::pixels.
  Result<MadeTile> make(Step step, TileIndex tile, std::span<uint8_t> into = {});

  // Whole images resized to side x side, without crop, flip or masks, and their labels. Errors as above, and kUsage: an id
  // out of range, more than kMaxSampleBytes of pixels.
  Result<MadeSamples> samples(const std::vector<SampleId>& ids, int side);

  // Wall time spent so far.
  StageSeconds seconds() const;

 private:
  TileMaker(std::shared_ptr<const Dataset> dataset, const FunctionConfig& function, SampleTransform transform);
  Result<const EpochOrder*> order_of(int64_t epoch);
  Result<const GroupMasks*> masks_of(Step step, int64_t group);
  Result<std::string> read(SampleId id);
  Error undecodable(SampleId id, const Error& cause) const;
  Status fill_masks(proto::TileHeader* header);

  std::shared_ptr<const Dataset> dataset_;
  FunctionConfig function_;
  SampleTransform transform_;
  SampleReader reader_;
  std::vector<SampleId> block_first_;
  int64_t epoch_ = -1;
  std::optional<EpochOrder> order_;
  Step mask_step_ = -1;
  int64_t mask_group_ = -1;
  GroupMasks masks_;
  double read_seconds_ = 0, mask_seconds_ = 0;
};

}  // namespace tessera::data
