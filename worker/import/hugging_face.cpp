#include "worker/import/hugging_face.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "common/file.h"
#include "common/safetensors.h"
#include "worker/import/tensor_bytes.h"

namespace tessera::import {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kEps = 1e-6;

Result<FunctionConfig> read_config(const std::string& path) {
  TESSERA_ASSIGN(const std::string text, read_file(path, int64_t{16} << 20));
  const auto bad = [&](const std::string& what) { return fail(ErrorCode::kFixData, "[import] " + path + ": " + what); };
  const json doc = json::parse(text, nullptr, false);
  if (!doc.is_object()) return bad("is no JSON object");
  try {
    const std::string type = doc.value("model_type", std::string("none"));
    if (type != "ijepa") return bad("model_type is " + type + ", an I-JEPA folder has ijepa");
    if (const auto act = doc.value("hidden_act", std::string("gelu")); act != "gelu") return bad("hidden_act is " + act + ", I-JEPA has gelu");
    if (!doc.value("qkv_bias", true)) return bad("qkv_bias is false, I-JEPA has biases");
    if (doc.value("num_channels", 3) != 3) return bad("num_channels is " + std::to_string(doc.value("num_channels", 3)) + ", 3 is expected");
    if (const double eps = doc.value("layer_norm_eps", 1e-12); eps != kEps)
      return bad("layer_norm_eps is " + json(eps).dump() + ", I-JEPA was trained with 1e-06; correct config.json if the folder is a conversion of it");
    FunctionConfig f;
    const int64_t dim = doc.at("hidden_size"), hidden = doc.at("intermediate_size");
    f.model = {"custom", doc.at("patch_size"), doc.at("image_size"), dim, doc.at("num_hidden_layers"), doc.at("num_attention_heads"), double(hidden) / double(dim), false};
    f.predictor.num_heads = f.model.num_heads;
    f.predictor.embed_dim = 4 * f.predictor.num_heads, f.predictor.depth = 1;  // the folder has none
    const auto& m = f.model;
    if (m.patch_size < 1 || m.image_size < m.patch_size || m.image_size % m.patch_size != 0 || dim < 4 || dim % 4 != 0 || m.num_heads < 1 || dim % m.num_heads != 0 || m.depth < 1 ||
        m.depth > 256 || hidden < 1)
      return bad("its sizes do not fit together: hidden_size " + std::to_string(dim) + ", heads " + std::to_string(m.num_heads) + ", image_size " + std::to_string(m.image_size) +
                 ", patch_size " + std::to_string(m.patch_size));
    return f;
  } catch (const json::exception& e) {
    return bad(std::string("a field is missing or of the wrong kind: ") + e.what());
  }
}

// The folder's tensors by key without the "ijepa." that classification models put first.
struct Files {
  std::vector<SafetensorsFile> files;
  std::map<std::string, const TensorView*> tensors;
};

Result<Files> open_files(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  if (paths.empty()) return fail(ErrorCode::kFixData, "[import] " + folder + ": has no model.safetensors");
  Files out;
  for (const auto& path : paths) {
    TESSERA_ASSIGN(SafetensorsFile file, SafetensorsFile::open(path));
    out.files.push_back(std::move(file));
  }
  for (const auto& file : out.files)
    for (const TensorView& tensor : file.tensors()) {
      const std::string plain = tensor.name.starts_with("ijepa.") ? tensor.name.substr(6) : tensor.name;
      if (!out.tensors.emplace(plain, &tensor).second) return fail(ErrorCode::kFixData, "[import] " + folder + ": " + plain + " is in two files");
    }
  return out;
}

Status read_one(const Files& files, const std::string& folder, const std::string& name, const std::vector<int64_t>& shape, float* out) {
  const auto bad = [&](const std::string& what) { return fail(ErrorCode::kFixData, "[import] " + folder + ": " + name + " " + what); };
  const auto it = files.tensors.find(name);
  if (it == files.tensors.end()) return bad("is missing");
  const TensorView& tensor = *it->second;
  if (tensor.shape != shape) return bad("is " + shape_text(tensor.shape) + ", config.json needs " + shape_text(shape));
  if (!is_weight_dtype(tensor.dtype)) return bad("is " + tensor.dtype + "; F32, BF16 and F16 are read");
  widen(tensor.dtype, tensor.data, tensor.count(), out);
  return check_finite("[import] " + folder + ": " + name, out, tensor.count());
}

}  // namespace

std::string hugging_face_name(const std::string& published, const std::string& part) {
  static const std::map<std::string, std::string> kTop{{"pos_embed", "embeddings.position_embeddings"},
                                                       {"patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"},
                                                       {"patch_embed.proj.bias", "embeddings.patch_embeddings.projection.bias"},
                                                       {"norm.weight", "layernorm.weight"},
                                                       {"norm.bias", "layernorm.bias"}};
  static const std::map<std::string, std::string> kBlock{{"norm1", "layernorm_before"},         {"norm2", "layernorm_after"},          {"attn.proj", "attention.output.dense"},
                                                         {"mlp.fc1", "intermediate.dense"},     {"mlp.fc2", "output.dense"}};
  if (const auto it = kTop.find(published); it != kTop.end()) return it->second;
  const size_t block = published.find('.') + 1, name = published.find('.', block) + 1, kind = published.rfind('.');
  const std::string layer = "encoder.layer." + published.substr(block, name - block), module = published.substr(name, kind - name);
  if (module == "attn.qkv") return layer + "attention.attention." + part + published.substr(kind);
  const auto it = kBlock.find(module);
  TESSERA_CHECK(it != kBlock.end(), published);
  return layer + it->second + published.substr(kind);
}

Result<HuggingFaceModel> read_hugging_face(const std::string& folder) {
  HuggingFaceModel out;
  TESSERA_ASSIGN(out.function, read_config(folder + "/config.json"));
  TESSERA_ASSIGN(const Files files, open_files(folder));
  out.state = model::State::empty(out.function);
  model::State& s = out.state;
  TESSERA_TRY(read_one(files, folder, hugging_face_name("pos_embed", ""), {1, s.context_position.size(0), s.context_position.size(1)}, s.context_position.mutable_data_ptr<float>()));
  s.target_position.copy_(s.context_position);
  const std::string prefix = "context_encoder.";
  for (const auto& place : s.layout.tensors) {
    if (place.network != model::Network::kContextEncoder) continue;
    const std::string name = place.name.substr(prefix.size());
    float* to = s.weights[size_t(place.bucket)].mutable_data_ptr<float>() + place.offset;
    std::vector<int64_t> shape = place.shape;
    const bool packed = name.find("attn.qkv") != std::string::npos;
    if (packed) shape[0] /= 3;
    for (const char* part : {"query", "key", "value"}) {
      TESSERA_TRY(read_one(files, folder, hugging_face_name(name, part), shape, to));
      if (!packed) break;
      to += place.count / 3;
    }
  }
  for (size_t i = 0; i < s.target.size(); ++i)
    if (s.target[i].defined()) s.target[i].copy_(s.weights[i]);
  return out;
}

}  // namespace tessera::import
