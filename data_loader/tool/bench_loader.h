// `tessera bench loader`: how fast tiles reach another process, and where the time goes.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"
#include "data_loader/dataset/dataset.h"

namespace tessera::data {

struct BenchLoaderOptions {
  int64_t size = 224;       // pixels of a side
  int64_t patch = 16;
  int64_t tile = 128;       // images
  int threads = 1;          // of the loader
  double seconds = 10;      // measured, after a warm-up of a fifth of it
  int64_t in_flight = 4;    // tiles asked for ahead
  std::string transport = "tcp";  // tcp | shm
};

// Starts a real tessera-loader on the data and pulls tiles over TCP or by shared memory as a trainer does, hashes checked; then makes tiles in
// this process, one thread, for the split. Fields: images_per_second (median over windows of a second), cpu_seconds_per_image
// and rss_bytes of the loader's process, bytes_per_sample on the wire, split {read, decode, resize, mask, send} in seconds per
// image (send: what the loader's process spends beyond the others, hashing included), settings.
// Errors: kUsage (transport; fewer images than a tile), those of the dataset, kUnavailable (the loader ended).
Result<nlohmann::json> bench_loader(const OpenOptions& open, const BenchLoaderOptions& options);

}  // namespace tessera::data
