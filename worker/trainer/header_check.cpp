#include "worker/trainer/header_check.h"

#include <algorithm>

#include "common/block_size.h"

namespace tessera::trainer {
namespace {

Status check_masks(const std::vector<std::vector<uint16_t>>& lists, int64_t wanted_lists, int64_t images, int64_t length, int64_t patches, const std::string& what) {
  if (int64_t(lists.size()) != wanted_lists || length < 1 || length > patches)
    return fail(ErrorCode::kRetry, std::to_string(lists.size()) + " " + what + " masks of length " + std::to_string(length) + ", expected " + std::to_string(wanted_lists));
  for (const auto& list : lists) {
    if (int64_t(list.size()) != images * length) return fail(ErrorCode::kRetry, "a " + what + " mask has " + std::to_string(list.size()) + " indices, expected " + std::to_string(images * length));
    if (const auto most = std::max_element(list.begin(), list.end()); *most >= patches)
      return fail(ErrorCode::kRetry, "a " + what + " mask names patch " + std::to_string(*most) + " of " + std::to_string(patches));
  }
  return {};
}

}  // namespace

Status check_header(const proto::TileHeader& h, const FunctionConfig& f) {
  const int64_t images = f.batch.tile_size, patches = f.model.grid() * f.model.grid();
  const MaskCounts counts = mask_counts(f.masks);
  if (int64_t(h.sample_ids.size()) != images || h.image_size != f.model.image_size || h.grid != f.model.grid() || h.pixel_bytes != tile_pixel_bytes(f))
    return fail(ErrorCode::kRetry, std::to_string(h.sample_ids.size()) + " images of " + std::to_string(h.image_size) + " pixels, grid " + std::to_string(h.grid) + ", " +
                                       std::to_string(h.pixel_bytes) + " bytes; expected " + std::to_string(images) + " of " + std::to_string(f.model.image_size) + ", grid " +
                                       std::to_string(f.model.grid()) + ", " + std::to_string(tile_pixel_bytes(f)) + " bytes");
  TESSERA_TRY(check_masks(h.contexts, counts.contexts, images, h.context_length, patches, "context"));
  return check_masks(h.targets, counts.targets, images, h.target_length, patches, "target");
}

}  // namespace tessera::trainer
