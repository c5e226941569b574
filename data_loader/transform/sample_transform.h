// One sample from its encoded bytes to the pixels of a tile: dimensions, crop parameters, window decode, resize, flip.
// A pure function of (function config, epoch, sample id, bytes); the object only holds reusable memory and stopwatches.
#pragma once

#include <cstdint>
#include <span>

#include "common/config.h"
#include "data_loader/decode/decode.h"
#include "data_loader/transform/crop.h"
#include "data_loader/transform/resize.h"

namespace tessera {

inline constexpr uint8_t kGreyLevel = 128;  // every byte of an undecodable sample under `undecodable: grey`

// One per loader thread.
class SampleTransform {
 public:
  // Error kFixConfig: interpolation unknown.
  static Result<SampleTransform> create(const FunctionConfig& function, const DecodeLimits& limits = {});

  // Writes image_size x image_size x 3 bytes (RGB, NHWC's HWC) at out and returns the crop. Error kFixData: the bytes do
  // not decode; out is then unspecified, and the caller follows data.undecodable (fill_grey or stop).
  Result<CropBox> training_crop(std::span<const uint8_t> bytes, int64_t epoch, SampleId sample, uint8_t* out);

  // The whole image resized to side x side without crop or flip: evaluation. Error: kFixData.
  Status whole_image(std::span<const uint8_t> bytes, int side, uint8_t* out);

  // image_size x image_size x 3 bytes of grey; the crop of such a sample is all zeros.
  CropBox fill_grey(uint8_t* out) const;

  // CPU-independent totals of wall time in this object since its creation, for LoaderStatus.
  double decode_seconds() const { return decode_seconds_; }
  double resize_seconds() const { return resize_seconds_; }

 private:
  SampleTransform(const FunctionConfig& function, Interpolation interpolation, const DecodeLimits& limits);
  FunctionConfig function_;
  Interpolation interpolation_;
  DecodeLimits limits_;
  Image image_;
  Resizer resizer_;
  double decode_seconds_ = 0;
  double resize_seconds_ = 0;
};

}  // namespace tessera
