#include "ops/cli/recipe_import.h"

#include <map>
#include <set>
#include <yaml-cpp/yaml.h>

#include "common/config.h"

namespace tessera::cli {
namespace {

// How a published key reads here: the same value under another name.
const std::map<std::string, std::string> kSameValue{
    {"data.crop_size", "function.model.image_size"},
    {"data.crop_scale", "function.data.crop_scale"},
    {"data.use_horizontal_flip", "function.data.horizontal_flip"},
    {"mask.allow_overlap", "function.masks.allow_overlap"},
    {"mask.aspect_ratio", "function.masks.target_aspect"},
    {"mask.enc_mask_scale", "function.masks.context_scale"},
    {"mask.min_keep", "function.masks.min_keep"},
    {"mask.num_enc_masks", "function.masks.contexts"},
    {"mask.num_pred_masks", "function.masks.targets"},
    {"mask.patch_size", "function.model.patch_size"},
    {"mask.pred_mask_scale", "function.masks.target_scale"},
    {"meta.model_name", "function.model.name"},
    {"meta.pred_depth", "function.predictor.depth"},
    {"meta.pred_emb_dim", "function.predictor.embed_dim"},
    {"optimization.ema", "function.optimizer.ema"},
    {"optimization.epochs", "function.epochs"},
    {"optimization.final_lr", "function.optimizer.final_lr"},
    {"optimization.final_weight_decay", "function.optimizer.final_weight_decay"},
    {"optimization.ipe_scale", "function.optimizer.ipe_scale"},
    {"optimization.lr", "function.optimizer.lr"},
    {"optimization.start_lr", "function.optimizer.start_lr"},
    {"optimization.warmup", "function.optimizer.warmup_epochs"},
    {"optimization.weight_decay", "function.optimizer.weight_decay"},
};

const std::map<std::string, std::string> kWithoutMeaning{
    {"data.num_workers", "loaders are services here: operation.loaders and operation.loader_threads"},
    {"data.pin_mem", "memory is pinned where it helps, without a switch"},
    {"meta.copy_data", "data is read where it lies"},
    {"meta.load_checkpoint", "`tessera up --resume` goes on with a run"},
    {"meta.read_checkpoint", "`tessera import ijepa FILE` reads a published checkpoint"},
    {"logging.folder", "a run lives in operation.run_dir"},
    {"logging.write_tag", "a run is named by operation.run_id"},
};

// Augmentations that this project does not have: refused when on, since the bits would be others.
const std::map<std::string, std::string> kMustBeOff{
    {"data.use_color_distortion", "colour distortion"},
    {"data.use_gaussian_blur", "Gaussian blur"},
};

struct Reading {
  std::string origin;
  std::map<std::string, YAML::Node> values;
  std::vector<std::string> overrides;
  std::vector<std::string> notes;

  std::string text(const std::string& key) const {
    const auto it = values.find(key);
    return it != values.end() && it->second.IsScalar() ? it->second.Scalar() : "";
  }
};

std::string in_flow(const YAML::Node& node) {
  YAML::Emitter out;
  out << YAML::Flow << node;
  return out.c_str();
}

Result<std::map<std::string, YAML::Node>> read_groups(const std::string& text, const std::string& origin) {
  std::map<std::string, YAML::Node> out;
  try {
    const YAML::Node root = YAML::Load(text);
    if (!root.IsMap()) return fail(ErrorCode::kFixConfig, "[config] " + origin + " holds no groups data, mask, meta, optimization, logging; it is no published I-JEPA configuration");
    for (const auto& group : root) {
      if (!group.second.IsMap()) return fail(ErrorCode::kFixConfig, "[config] " + origin + ": " + group.first.as<std::string>() + " is no group of keys");
      for (const auto& entry : group.second) out[group.first.as<std::string>() + "." + entry.first.as<std::string>()] = entry.second;
    }
  } catch (const YAML::Exception& e) {
    return fail(ErrorCode::kFixConfig, "[config] " + origin + ":" + std::to_string(e.mark.line + 1) + ": not valid YAML: " + e.msg);
  }
  return out;
}

Status take_keys(Reading& in) {
  for (const auto& [key, node] : in.values) {
    const std::string value = in_flow(node);
    if (const auto same = kSameValue.find(key); same != kSameValue.end()) {
      in.overrides.push_back(same->second + "=" + value);
    } else if (const auto none = kWithoutMeaning.find(key); none != kWithoutMeaning.end()) {
      in.notes.push_back(key + ": " + value + " has no meaning here: " + none->second);
    } else if (const auto off = kMustBeOff.find(key); off != kMustBeOff.end()) {
      if (in.text(key) == "true" || in.text(key) == "True")
        return fail(ErrorCode::kFixConfig, "[config] " + in.origin + ": " + key + " is on, and " + off->second + " is not built here; set it to false (as in every published recipe)");
      in.notes.push_back(key + ": " + value + " has no meaning here: it is always off");
    } else if (key == "data.color_jitter_strength") {
      in.notes.push_back(key + ": " + value + " has no meaning here: colour distortion is always off");
    } else if (key != "data.batch_size" && key != "data.root_path" && key != "data.image_folder" && key != "meta.use_bfloat16") {
      in.notes.push_back(key + ": " + value + " is no key of a published configuration; left out");
    }
  }
  return {};
}

Status take_batch(Reading& in, int64_t devices) {
  const std::string text = in.text("data.batch_size");
  if (text.empty()) return fail(ErrorCode::kFixConfig, "[config] " + in.origin + " has no data.batch_size, so the size of a tile is unknown");
  const int64_t size = std::strtoll(text.c_str(), nullptr, 10);
  if (size < 1) return fail(ErrorCode::kFixConfig, "[config] " + in.origin + ": data.batch_size '" + text + "' is no number of images");
  const int64_t tiles = devices > 0 ? devices : std::max<int64_t>(1, 2048 / size);
  in.overrides.push_back("function.batch.tile_size=" + std::to_string(size));
  in.overrides.push_back("function.batch.tiles=" + std::to_string(tiles));
  in.notes.push_back("data.batch_size: " + text + " is the batch of one device: a tile here; " + std::to_string(tiles) + " tiles make a step of " + std::to_string(size * tiles) + " images" +
                     (devices > 0 ? "" : " (as published; --devices N says otherwise)"));
  return {};
}

void take_paths(Reading& in) {
  const std::string root = in.text("data.root_path"), folder = in.text("data.image_folder");
  if (root.empty() && folder.empty()) return;
  std::string path = root;
  if (!path.empty() && path.back() != '/') path += '/';
  path += folder;
  if (!path.empty() && path.back() != '/') path += '/';
  in.overrides.push_back("operation.data_path=" + in_flow(YAML::Node(path + "train")));
}

// Every value, without the origins: all came from the published file.
std::string print_plain(const Config& config) {
  std::string out;
  const std::string all = print_resolved(config);
  for (size_t at = 0; at < all.size();) {
    const size_t end = all.find('\n', at);
    std::string line = all.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("#")) continue;
    if (const size_t comment = line.find("  # "); comment != std::string::npos) line.resize(line.find_last_not_of(' ', comment) + 1);
    out += line + "\n";
  }
  return out;
}

}  // namespace

Result<ImportedRecipe> import_recipe(const std::string& yaml_text, const std::string& origin, int64_t devices) {
  Reading in;
  in.origin = origin;
  TESSERA_ASSIGN(in.values, read_groups(yaml_text, origin));
  in.overrides = {"function.masks.mode=reference", "function.data.interpolation=bilinear"};
  TESSERA_TRY(take_keys(in));
  TESSERA_TRY(take_batch(in, devices));
  take_paths(in);
  const std::string half = in.text("meta.use_bfloat16");
  in.overrides.push_back(std::string("function.precision=") + (half == "true" || half == "True" ? "published" : "fp32"));
  TESSERA_ASSIGN(const Config config, parse_config("", origin, in.overrides));
  ImportedRecipe out;
  out.yaml = "# Imported by `tessera config import`.\n" + print_plain(config);
  out.notes = in.notes;
  return out;
}

}  // namespace tessera::cli
