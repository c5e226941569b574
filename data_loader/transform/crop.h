// Random resized crop: which box of an image is used. Pure.
// Rule: torchvision 0.26 RandomResizedCrop.get_params, arithmetic and order of draws as goldens/README "crop_params":
//   up to 10 tries of two words each: s = k1/2^24 (s1-s0) + s0 and a = exp(k2/2^24 (l1-l0) + l0) in float, k = low 24 bits
//   of a word, l = float log of the ratio's bounds; w = round(sqrt(area a)), h = round(sqrt(area / a)) in double, halves to
//   even; accepted if it fits; then top = word mod (H-h+1), left = word mod (W-w+1). Else the largest central box whose
//   ratio is within the bounds, without further words.
// exp and log are taken in double and rounded to float before use: libm differs in the last bit of a float exp.
#pragma once

#include <cstdint>

#include "common/config.h"
#include "common/ids.h"
#include "common/philox.h"
#include "data_loader/decode/decode.h"
#include "proto/messages.h"

namespace tessera {

using proto::CropBox;

// A stream of uniformly distributed 32-bit words.
class WordSource {
 public:
  virtual ~WordSource() = default;
  virtual uint32_t next_u32() = 0;
};

class PhiloxWords final : public WordSource {
 public:
  PhiloxWords(uint64_t seed, Purpose purpose, uint64_t index, uint32_t epoch_or_step)
      : stream_(seed, purpose, index, epoch_or_step) {}
  uint32_t next_u32() override { return stream_.next_u32(); }

 private:
  PhiloxStream stream_;
};

// image: >= 1 x 1. scale: shares of the area, ratio: width / height; both low <= high, > 0. The box lies inside the image.
CropBox draw_crop(WordSource& words, const ImageSize& image, const Pair& scale, const Pair& ratio);

// The crop of a sample in an epoch: words of Philox kCrop; flip, when data.horizontal_flip is on, of kFlip.
CropBox crop_of(const FunctionConfig& function, int64_t epoch, SampleId sample, const ImageSize& image);

}  // namespace tessera
