// One sample from its encoded bytes to the pixels of a tile: size, crop parameters, window decode, resize, flip.
// A pure function of (function config, epoch, sample id, bytes); the object holds reusable memory and stopwatches only.
#pragma once

#include <cstdint>
#include <span>

#include "common/config.h"
#include "common/ids.h"
#include "data_loader/decode/decode.h"
#include "data_loader/transform/resize.h"

namespace tessera::data {

// Every byte of a sample that does not decode, under `undecodable: grey`.
inline constexpr uint8_t kGreyLevel = 128;

// The crop of a sample in an epoch: draw_crop (transform/crop.h) with Philox words of kCrop, index = sample, fourth word
// = epoch; with data.horizontal_flip, flipped if kFlip's first uniform is below 1/2.
proto::CropBox crop_of(const FunctionConfig& function, int64_t epoch, SampleId sample, const ImageSize& image);

// One per loader thread.
class SampleTransform {
 public:
  // Error kFixConfig: function.data.interpolation unknown.
  static Result<SampleTransform> create(const FunctionConfig& function, const DecodeLimits& limits = {});

  // Writes image_size x image_size x 3 bytes (RGB) at out and returns the crop. Error kFixData: the bytes do not decode;
  // out is then unspecified, and the caller follows data.undecodable (fill_grey, or stop).
  Result<proto::CropBox> training_crop(std::span<const uint8_t> bytes, int64_t epoch, SampleId sample, uint8_t* out);

  // The whole image resized to side x side, without crop or flip: evaluation. Error: kFixData.
  Status whole_image(std::span<const uint8_t> bytes, int side, uint8_t* out);

  // image_size x image_size x 3 grey bytes. The crop of such a sample is all zeros.
  proto::CropBox fill_grey(uint8_t* out) const;

  // Wall time spent here since creation, for LoaderStatus.
  double decode_seconds() const { return decode_seconds_; }
  double resize_seconds() const { return resize_seconds_; }

 private:
  SampleTransform(const FunctionConfig& function, Filter filter, const DecodeLimits& limits) : function_(function), filter_(filter), limits_(limits) {}
  Status decode_and_resize(std::span<const uint8_t> bytes, const proto::CropBox& box, int side, uint8_t* out);

  FunctionConfig function_;
  Filter filter_;
  DecodeLimits limits_;
  WindowImage window_;
  ResizeScratch scratch_;
  double decode_seconds_ = 0;
  double resize_seconds_ = 0;
};

}  // namespace tessera::data
