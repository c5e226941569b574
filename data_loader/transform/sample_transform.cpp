#include "data_loader/transform/sample_transform.h"

#include <chrono>
#include <cstring>

#include "common/philox.h"
#include "data_loader/transform/crop.h"

namespace tessera::data {

using Clock = std::chrono::steady_clock;
static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

proto::CropBox crop_of(const FunctionConfig& function, int64_t epoch, SampleId sample, const ImageSize& image) {
  const uint64_t seed = uint64_t(function.seed);
  PhiloxStream words(seed, Purpose::kCrop, uint64_t(sample), uint32_t(epoch));
  proto::CropBox box = draw_crop(image.width, image.height, function.data.crop_scale, function.data.crop_ratio, words);
  if (function.data.horizontal_flip) box.flip = PhiloxStream(seed, Purpose::kFlip, uint64_t(sample), uint32_t(epoch)).next_float() < 0.5f;
  return box;
}

Result<SampleTransform> SampleTransform::create(const FunctionConfig& function, const DecodeLimits& limits) {
  TESSERA_ASSIGN(const Filter filter, filter_of(function.data.interpolation));
  return SampleTransform(function, filter, limits);
}

Status SampleTransform::decode_and_resize(std::span<const uint8_t> bytes, const proto::CropBox& box, int side, uint8_t* out) {
  const auto begin = Clock::now();
  const Status decoded = decode_window(bytes, {box.top, box.left, box.height, box.width}, window_, limits_);
  const auto middle = Clock::now();
  decode_seconds_ += seconds(middle - begin);
  TESSERA_TRY(decoded);
  crop_resize_rgbx(window_.pixel(box.top, box.left), window_.row_bytes, box, side, filter_, out, scratch_);
  resize_seconds_ += seconds(Clock::now() - middle);
  return {};
}

Result<proto::CropBox> SampleTransform::training_crop(std::span<const uint8_t> bytes, int64_t epoch, SampleId sample, uint8_t* out) {
  TESSERA_ASSIGN(const ImageSize size, image_size(bytes, limits_));
  const proto::CropBox box = crop_of(function_, epoch, sample, size);
  TESSERA_TRY(decode_and_resize(bytes, box, int(function_.model.image_size), out));
  return box;
}

Status SampleTransform::whole_image(std::span<const uint8_t> bytes, int side, uint8_t* out) {
  TESSERA_ASSIGN(const ImageSize size, image_size(bytes, limits_));
  return decode_and_resize(bytes, {0, 0, size.height, size.width, false}, side, out);
}

proto::CropBox SampleTransform::fill_grey(uint8_t* out) const {
  std::memset(out, kGreyLevel, size_t(function_.model.image_size * function_.model.image_size * 3));
  return {};
}

}  // namespace tessera::data
