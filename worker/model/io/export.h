// Models in the forms that other programs read: plain safetensors, a Hugging Face folder, PyTorch's .pth. Nothing of the
// model is copied: files are written from views of the state.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/config.h"
#include "common/result.h"
#include "worker/model/state.h"

namespace tessera::model {

enum class Encoder {
  kTarget,   // the EMA target encoder: what the paper evaluates
  kContext,  // the trained context encoder
};

struct Exported {
  int64_t tensors = 0, bytes = 0;
  std::vector<std::string> files;
  std::vector<std::string> skipped;  // what of the checkpoint is not in the files
};

// What happens to files of these names that are there already.
enum class Existing { kRefuse, kReplace };

struct ExportTo {
  std::string folder;  // made when missing
  Existing existing = Existing::kRefuse;
};

// DIR/model.safetensors with the published names ("pos_embed", "blocks.0.attn.qkv.weight"), metadata format: pt and the
// sizes. Errors of all three: kIo naming the path; kUsage when a file exists.
Result<Exported> export_safetensors(const FunctionConfig& function, const State& state, Encoder encoder, const ExportTo& to);

// DIR/{config.json, model.safetensors, preprocessor_config.json} for transformers' IJepaModel and AutoImageProcessor:
// the hub's key names, layer_norm_eps 1e-6, the mean and std that the model was trained with.
Result<Exported> export_hugging_face(const FunctionConfig& function, const State& state, Encoder encoder, const ExportTo& to);

// DIR/model.pth.tar in the published layout, for torch.load(weights_only=True). With an encoder: {"target_encoder": ...}
// or {"encoder": ...} alone; without: encoder, predictor, target_encoder, opt (the published four groups), epoch, lr ...
struct PthOptions {
  std::optional<Encoder> only;
  int64_t steps_per_epoch = 0;  // for `epoch`; 0 writes epoch 0
};
Result<Exported> export_pth(const FunctionConfig& function, const State& state, const PthOptions& options, const ExportTo& to);

}  // namespace tessera::model
