#include "proto/messages.h"

namespace tessera::proto {

Hash128 tile_digest(const TileHeader& h) {
  Hasher hasher;
  hasher.add_i64(h.step);
  hasher.add_i64(h.tile);
  hasher.add_i64(h.epoch);
  hasher.add_i64(h.image_size);
  hasher.add_i64(h.grid);
  hasher.add_i64(h.context_length);
  hasher.add_i64(h.target_length);
  hasher.add_u64(h.sample_ids.size());
  for (const SampleId id : h.sample_ids) hasher.add_i64(id);
  for (const CropBox& box : h.crops) {
    for (const int32_t side : {box.top, box.left, box.height, box.width}) hasher.add_i64(side);
    hasher.add_u64(box.flip);
  }
  for (const auto* lists : {&h.contexts, &h.targets}) {
    hasher.add_u64(lists->size());
    for (const auto& list : *lists) {
      hasher.add_u64(list.size());
      hasher.add_bytes(list.data(), list.size() * sizeof(uint16_t));
    }
  }
  hasher.add_u64(h.grey_samples.size());
  for (const SampleId id : h.grey_samples) hasher.add_i64(id);
  hasher.add_hash(h.pixel_hash);
  return hasher.finish();
}

}  // namespace tessera::proto
