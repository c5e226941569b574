// Labelled images for evaluation, from a loader process of our own: tessera-model never reads data itself.
#pragma once

#include <ATen/core/Tensor.h>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/process.h"
#include "proto/channel.h"

namespace tessera::evaluate {

struct Samples {
  at::Tensor pixels;                               // [n, S, S, 3] uint8
  std::vector<SampleId> ids;
  std::vector<std::string> keys;
  std::map<std::string, std::vector<double>> labels;  // by name, NaN where missing
};

class SampleSource {
 public:
  // Starts `tessera-loader --standalone` beside this program for `data_path` and waits until it serves.
  // extra: more flags for it (--function FILE). Errors: the loader's own sentence with its exit code; kUnavailable.
  static Result<std::unique_ptr<SampleSource>> open(const std::string& data_path, int threads, const std::vector<std::string>& extra = {});
  ~SampleSource();
  const proto::DatasetInfo& info() const { return info_; }
  // Whole images resized to size x size. Errors: kFixData (an undecodable image, named), kUnavailable.
  Result<Samples> read(const std::vector<SampleId>& ids, int size);
  // A tile as a run would see it (needs --function).
  Result<std::pair<proto::TileHeader, std::vector<uint8_t>>> tile(Step step, TileIndex tile, int64_t bytes);

 private:
  SampleSource() = default;
  Result<proto::Incoming> wait(Millis timeout_ms);
  Child loader_;
  std::string folder_, log_;
  std::unique_ptr<proto::Client> client_;
  proto::DatasetInfo info_;
  uint64_t next_id_ = 1;
};

}  // namespace tessera::evaluate
