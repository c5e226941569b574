#include "data_loader/server/tile_maker.h"

#include <algorithm>

#include "common/clock.h"

namespace tessera::data {
namespace {

std::span<const uint8_t> as_bytes(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

}  // namespace

TileMaker::TileMaker(std::shared_ptr<const Dataset> dataset, const FunctionConfig& function, SampleTransform transform)
    : dataset_(std::move(dataset)), function_(function), transform_(std::move(transform)), reader_(dataset_) {
  const auto blocks = dataset_->manifest->block_starts();
  block_first_.assign(blocks.begin(), blocks.end());
}

Result<TileMaker> TileMaker::create(std::shared_ptr<const Dataset> dataset, const FunctionConfig& function) {
  TESSERA_ASSIGN(SampleTransform transform, SampleTransform::create(function));
  return TileMaker(std::move(dataset), function, std::move(transform));
}

Result<const EpochOrder*> TileMaker::order_of(int64_t epoch) {
  if (!order_ || epoch_ != epoch) order_.emplace(function_, dataset_->manifest->sample_count(), block_first_, epoch);
  epoch_ = epoch;
  return &*order_;
}

Result<const GroupMasks*> TileMaker::masks_of(Step step, int64_t group) {
  if (mask_step_ == step && mask_group_ == group) return &masks_;
  TESSERA_ASSIGN(masks_, draw_group_masks(function_, step, group));
  mask_step_ = step, mask_group_ = group;
  return &masks_;
}

Result<std::string> TileMaker::read(SampleId id) {
  const double begin = monotonic_seconds();
  auto bytes = reader_.read(id);
  read_seconds_ += monotonic_seconds() - begin;
  return bytes;
}

Error TileMaker::undecodable(SampleId id, const Error& cause) const {
  return {ErrorCode::kFixData, "[data_loader] sample " + std::to_string(id) + " (" + reader_.where(id) + ") does not decode: " + cause.message +
                                   "; replace it and index again, or set function.data.undecodable: grey"};
}

Status TileMaker::fill_masks(proto::TileHeader* header) {
  const double begin = monotonic_seconds();
  const int64_t per_group = function_.batch.tiles_per_mask_group, images = function_.batch.tile_size;
  TESSERA_ASSIGN(const GroupMasks* masks, masks_of(header->step, header->tile / per_group));
  const int64_t first = header->tile % per_group * images;
  const auto flatten = [&](const std::vector<std::vector<PatchList>>& lists, std::vector<std::vector<uint16_t>>* out) {
    for (const auto& by_image : lists) {
      auto& flat = out->emplace_back();
      for (int64_t i = first; i < first + images; ++i) flat.insert(flat.end(), by_image[size_t(i)].begin(), by_image[size_t(i)].end());
    }
  };
  flatten(masks->contexts, &header->contexts);
  flatten(masks->targets, &header->targets);
  header->context_length = masks->context_length;
  header->target_length = masks->target_length;
  mask_seconds_ += monotonic_seconds() - begin;
  return {};
}

Result<MadeTile> TileMaker::make(Step step, TileIndex tile, std::span<uint8_t> into) {
  if (step < 0 || tile < 0 || tile >= function_.batch.tiles)
    return fail(ErrorCode::kUsage, "[data_loader] there is no tile " + std::to_string(tile) + " of step " + std::to_string(step) + "; a step has " + std::to_string(function_.batch.tiles) + " tiles");
  TESSERA_ASSIGN(const RunLength length, run_length(function_, dataset_->manifest->sample_count()));
  const TilePlace place = tile_place(function_, length.steps_per_epoch, step, tile);
  TESSERA_ASSIGN(const EpochOrder* order, order_of(place.epoch));
  MadeTile out;
  proto::TileHeader& header = out.header;
  header.step = step, header.tile = tile, header.epoch = place.epoch;
  header.image_size = int32_t(function_.model.image_size), header.grid = int32_t(function_.model.grid());
  header.sample_ids = tile_samples(function_, *order, place);
  const int64_t image_bytes = function_.model.image_size * function_.model.image_size * 3;
  const size_t pixel_bytes = header.sample_ids.size() * size_t(image_bytes);
  TESSERA_CHECK(into.empty() || into.size() == pixel_bytes);
  const auto own = into.empty() ? std::make_shared<std::vector<uint8_t>>(pixel_bytes) : nullptr;
  if (own) into = *own;
  for (size_t i = 0; i < header.sample_ids.size(); ++i) {
    const SampleId id = header.sample_ids[i];
    uint8_t* to = into.data() + i * size_t(image_bytes);
    TESSERA_ASSIGN(const std::string bytes, read(id));
    auto crop = transform_.training_crop(as_bytes(bytes), place.epoch, id, to);
    if (!crop) {
      Error error = undecodable(id, crop.error());
      if (function_.data.undecodable != "grey") return tl::unexpected<Error>(std::move(error));
      crop = transform_.fill_grey(to);
      header.grey_samples.push_back(id);
      out.grey_reason = std::move(error.message);
    }
    header.crops.push_back(*crop);
  }
  TESSERA_TRY(fill_masks(&header));
  header.pixel_bytes = int64_t(pixel_bytes);
  header.frame_count = int32_t((header.pixel_bytes + kFrameBytes - 1) / kFrameBytes);
  header.pixel_hash = hash_bytes(into.data(), pixel_bytes);
  header.digest = proto::tile_digest(header);
  out.pixels = own;
  return out;
}

Result<MadeSamples> TileMaker::samples(const std::vector<SampleId>& ids, int side) {
  const Manifest& manifest = *dataset_->manifest;
  if (side < 1 || side > 4096) return fail(ErrorCode::kUsage, "[data_loader] images of " + std::to_string(side) + " pixels are asked for; 1 to 4096 are possible");
  const int64_t image_bytes = int64_t{3} * side * side;
  if (ids.empty() || int64_t(ids.size()) * image_bytes > std::max(kMaxSampleBytes, image_bytes))
    return fail(ErrorCode::kUsage, "[data_loader] " + std::to_string(ids.size()) + " images of " + std::to_string(side) + " pixels are asked for at once; ask for 1 to " + std::to_string(std::max<int64_t>(1, kMaxSampleBytes / image_bytes)));
  MadeSamples out;
  out.tile.sample_ids = ids;
  out.tile.label_names = manifest.label_names();
  auto pixels = std::make_shared<std::vector<uint8_t>>(ids.size() * size_t(image_bytes));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= manifest.sample_count()) return fail(ErrorCode::kUsage, "[data_loader] there is no sample " + std::to_string(ids[i]) + "; the dataset has " + std::to_string(manifest.sample_count()));
    TESSERA_ASSIGN(const std::string bytes, read(ids[i]));
    uint8_t* to = pixels->data() + i * size_t(image_bytes);
    if (const Status resized = transform_.whole_image(as_bytes(bytes), side, to); !resized) {
      if (function_.data.undecodable != "grey") return tl::unexpected<Error>(undecodable(ids[i], resized.error()));
      std::fill_n(to, image_bytes, kGreyLevel);
    }
    out.tile.keys.emplace_back(manifest.key(ids[i]));
    const auto labels = manifest.labels(ids[i]);
    out.tile.labels.insert(out.tile.labels.end(), labels.begin(), labels.end());
  }
  out.tile.pixel_hash = hash_bytes(pixels->data(), pixels->size());
  out.pixels = std::move(pixels);
  return out;
}

StageSeconds TileMaker::seconds() const { return {read_seconds_, transform_.decode_seconds(), transform_.resize_seconds(), mask_seconds_}; }

}  // namespace tessera::data
