// The embedded procedural dataset: labelled pictures of 3-D objects as WebDataset shards, so that nothing needs a
// download. What is in a picture: scenes/scene.h.
//
//   scenes-000000.tar: 00000000.jpg 00000000.cls 00000000.json {"class","class_name","count","distance"} 00000001.jpg ...
//   classes.txt
//
// Beside them, when asked for, the masks: shards of the same names and keys with 00000000.png instead of the image, 8 bits of grey, 255 - 16 i
// where object i is seen (object 0 is the nearest; all are brighter than half) and 0 elsewhere.
//
// A pure function of (count, size, seed, shard_size): no libm call decides a bit, and JPEG quality 92 without chroma
// subsampling is written by libjpeg-turbo's integer DCT, the same on every CPU. (Another libjpeg may give other bytes; a
// run checks the manifest's digest.)
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::data {

enum class ScenePictures {
  kImages,  // what a camera sees
  kMasks,   // which object covers each pixel
};

struct ScenesOptions {
  int64_t count = 10000;
  int size = 64;  // side in pixels, 16 to 1024
  uint64_t seed = 0;
  int64_t shard_size = 1000;
  int threads = 2;
  ScenePictures pictures = ScenePictures::kImages;
};

struct ScenesWritten {
  int64_t shards = 0;
  int64_t bytes = 0;
};

// Writes into `folder`, which is made and must be empty. Errors: kUsage (sizes out of range, the folder has files), kIo.
Result<ScenesWritten> make_scenes(const std::string& folder, const ScenesOptions& options);

// One picture as in the shards.
struct ScenePicture {
  std::vector<uint8_t> rgb;  // size x size x 3
  std::string json;
  int label = 0;
};
ScenePicture make_scene_picture(uint64_t seed, uint64_t index, int size);
// Its mask: size x size grey levels as in the shards.
std::vector<uint8_t> make_scene_mask(uint64_t seed, uint64_t index, int size);

}  // namespace tessera::data
