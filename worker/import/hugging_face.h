// A Hugging Face I-JEPA folder (config.json with model_type ijepa, *.safetensors with the hub's key names) as an encoder.
#pragma once

#include <string>

#include "common/config.h"
#include "common/result.h"
#include "worker/model/state.h"

namespace tessera::import {

struct HuggingFaceModel {
  FunctionConfig function;
  model::State state;  // the one encoder of the folder in weights and in target; the predictor is zero
};

// Key of a published encoder tensor ("blocks.0.attn.proj.weight") in the hub's files. qkv tensors have three: part is
// "query", "key" or "value"; ignored for the others.
std::string hugging_face_name(const std::string& published, const std::string& part);

// Errors: kIo; kFixData naming file and what was expected and found: another model_type, another activation or epsilon,
// a missing key, a wrong shape, NaN.
Result<HuggingFaceModel> read_hugging_face(const std::string& folder);

}  // namespace tessera::import
