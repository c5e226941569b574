// The flat layout of a model's state: every tensor has a place in one flat buffer per bucket, the same place in each
// role (weights, gradient, exp_avg, exp_avg_sq, EMA target). A bucket is a transformer block, or what stands before or
// after the blocks. Slices, the exchange, digests and checkpoints all rest on it.
//
// Places are multiples of 16 floats (64 bytes): every view that a kernel reads starts on 64 bytes (a 4-byte alignment
// changed MKL's bits); the padding is zero in every role and stays zero.
// Names are the published ones: "context_encoder.blocks.0.attn.qkv.weight", "predictor.mask_token".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/digest.h"

namespace tessera::model {

enum class Network {
  kContextEncoder,  // trained; its tensors have a twin in the EMA target
  kPredictor,       // trained; no twin
};

struct TensorPlace {
  std::string name;             // full, with the network's prefix
  std::vector<int64_t> shape;
  int64_t count = 0;            // elements
  int64_t offset = 0;           // first element within the bucket's buffer, a multiple of 16
  int bucket = 0;
  Network network = Network::kContextEncoder;
  bool decayed = false;         // weight decay applies: not a bias, not one-dimensional (published rule)
  std::string target_name() const;  // "target_encoder.blocks..." for encoder tensors, empty for the predictor's
};

struct Bucket {
  std::string name;  // "context_encoder.blocks.3"
  Network network = Network::kContextEncoder;
  int64_t size = 0;  // floats, a multiple of 16
  int first_tensor = 0, last_tensor = 0;  // half-open, into Layout::tensors
};

// Frozen position tables are not in the flat buffers: they are made from the config, except the target's, which the
// published EMA lets drift and which is state (State::target_position).
struct Layout {
  std::vector<TensorPlace> tensors;  // in bucket order
  std::vector<Bucket> buckets;       // in forward order: encoder, then predictor
  int64_t total_floats = 0;          // of one role, encoder and predictor
  int64_t target_floats = 0;         // of the encoder's buckets

  static Layout make(const FunctionConfig& function);
  const TensorPlace* find(const std::string& name) const;
};

}  // namespace tessera::model
