#include "worker/model/io/export.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/file.h"
#include "worker/import/hugging_face.h"
#include "worker/model/io/export_parts.h"

namespace tessera::model {
namespace {

using nlohmann::json;

TensorView view_of(std::string name, std::vector<int64_t> shape, const float* data, int64_t count) { return {std::move(name), "F32", std::move(shape), data, count * 4}; }

TensorView table_of(std::string name, const at::Tensor& table) {
  return view_of(std::move(name), {1, table.size(0), table.size(1)}, table.const_data_ptr<float>(), table.numel());
}

Result<Exported> write(const std::string& path, const std::vector<TensorView>& tensors, std::map<std::string, std::string> metadata) {
  metadata["format"] = "pt";
  TESSERA_ASSIGN(const WrittenFile written, write_safetensors(path, tensors, metadata));
  return Exported{int64_t(tensors.size()), written.size_bytes, {path}, {"predictor", "optimizer"}};
}

const char* other(Encoder encoder) { return encoder == Encoder::kTarget ? "context_encoder" : "target_encoder"; }

Status write_json(const std::string& path, const json& document, Exported& out) {
  const std::string text = document.dump(2) + "\n";
  TESSERA_TRY(write_file_atomic(path, text));
  out.files.push_back(path);
  out.bytes += int64_t(text.size());
  return {};
}

// Published encoder tensors under the hub's names; qkv rows are three tensors there.
std::vector<TensorView> hugging_face_tensors(const State& state, Encoder encoder) {
  std::vector<TensorView> out;
  for (const TensorView& tensor : encoder_tensors(state, encoder)) {
    if (tensor.name.find("attn.qkv") == std::string::npos) {
      TensorView renamed = tensor;
      renamed.name = import::hugging_face_name(tensor.name, "");
      out.push_back(std::move(renamed));
      continue;
    }
    std::vector<int64_t> shape = tensor.shape;
    shape[0] /= 3;
    const int64_t count = tensor.count() / 3;
    const float* data = static_cast<const float*>(tensor.data);
    for (const char* part : {"query", "key", "value"}) {
      out.push_back(view_of(import::hugging_face_name(tensor.name, part), shape, data, count));
      data += count;
    }
  }
  return out;
}

json hugging_face_config(const ModelConfig& m) {
  return {{"architectures", {"IJepaModel"}},
          {"model_type", "ijepa"},
          {"hidden_size", m.embed_dim},
          {"num_hidden_layers", m.depth},
          {"num_attention_heads", m.num_heads},
          {"intermediate_size", m.hidden_dim()},
          {"hidden_act", "gelu"},
          {"hidden_dropout_prob", 0.0},
          {"attention_probs_dropout_prob", 0.0},
          {"initializer_range", 0.02},
          {"layer_norm_eps", 1e-6},
          {"image_size", m.image_size},
          {"patch_size", m.patch_size},
          {"num_channels", 3},
          {"qkv_bias", true},
          {"torch_dtype", "float32"}};
}

json preprocessor_config(const FunctionConfig& f) {
  constexpr int kBilinear = 2;  // PIL.Image.BILINEAR
  return {{"image_processor_type", "ViTImageProcessor"},
          {"do_resize", true},
          {"size", {{"height", f.model.image_size}, {"width", f.model.image_size}}},
          {"resample", kBilinear},
          {"do_rescale", true},
          {"rescale_factor", 1.0 / 255.0},
          {"do_normalize", true},
          {"image_mean", f.data.mean},
          {"image_std", f.data.std}};
}

}  // namespace

std::vector<TensorView> encoder_tensors(const State& state, Encoder encoder) {
  const bool target = encoder == Encoder::kTarget;
  const FlatBuffers& role = target ? state.target : state.weights;
  const std::string prefix = "context_encoder.";
  std::vector<TensorView> out{table_of("pos_embed", target ? state.target_position : state.context_position)};
  for (const TensorPlace& place : state.layout.tensors)
    if (place.network == Network::kContextEncoder)
      out.push_back(view_of(place.name.substr(prefix.size()), place.shape, role[size_t(place.bucket)].const_data_ptr<float>() + place.offset, place.count));
  return out;
}

std::vector<TensorView> predictor_tensors(const State& state) {
  const std::string prefix = "predictor.";
  std::vector<TensorView> out;
  for (const TensorPlace& place : state.layout.tensors) {
    if (place.network != Network::kPredictor) continue;
    out.push_back(view_of(place.name.substr(prefix.size()), place.shape, state.weights[size_t(place.bucket)].const_data_ptr<float>() + place.offset, place.count));
    if (out.back().name == "mask_token") out.push_back(table_of("predictor_pos_embed", state.predictor_position));
  }
  return out;
}

Status prepare(const ExportTo& to, const std::vector<std::string>& names) {
  TESSERA_TRY(make_folders(to.folder));
  if (to.existing == Existing::kReplace) return {};
  for (const auto& name : names)
    if (std::filesystem::exists(std::filesystem::path(to.folder) / name))
      return fail(ErrorCode::kUsage, "[export] " + to.folder + "/" + name + " exists; choose another --out or add --overwrite");
  return {};
}

Result<Exported> export_safetensors(const FunctionConfig& f, const State& state, Encoder encoder, const ExportTo& to) {
  TESSERA_TRY(prepare(to, {"model.safetensors"}));
  TESSERA_ASSIGN(Exported out, write(to.folder + "/model.safetensors", encoder_tensors(state, encoder),
                                     {{"model", "I-JEPA"},
                                      {"patch_size", std::to_string(f.model.patch_size)},
                                      {"image_size", std::to_string(f.model.image_size)},
                                      {"num_heads", std::to_string(f.model.num_heads)},
                                      {"step", std::to_string(state.step)}}));
  out.skipped.push_back(other(encoder));
  return out;
}

Result<Exported> export_hugging_face(const FunctionConfig& f, const State& state, Encoder encoder, const ExportTo& to) {
  TESSERA_TRY(prepare(to, {"config.json", "model.safetensors", "preprocessor_config.json"}));
  TESSERA_ASSIGN(Exported out, write(to.folder + "/model.safetensors", hugging_face_tensors(state, encoder), {}));
  TESSERA_TRY(write_json(to.folder + "/config.json", hugging_face_config(f.model), out));
  TESSERA_TRY(write_json(to.folder + "/preprocessor_config.json", preprocessor_config(f), out));
  out.skipped.push_back(other(encoder));
  return out;
}

}  // namespace tessera::model
