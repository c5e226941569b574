#include "common/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <type_traits>
#include <yaml-cpp/yaml.h>

#include "common/block_size.h"
#include "common/config_schema.h"

extern char** environ;

namespace tessera {
namespace {

struct RawValue {
  YAML::Node node;
  std::string origin;
};
using RawMap = std::map<std::string, RawValue>;

std::string quoted(const YAML::Node& node) {
  YAML::Emitter out;
  out << YAML::Flow << node;
  return std::string("'") + out.c_str() + "'";
}

constexpr int kDeepest = 8;  // levels of maps; an alias may refer to the map that holds it

Result<void> flatten(const YAML::Node& node, const std::string& prefix, const std::string& origin, RawMap& out, int depth = 0) {
  for (const auto& entry : node) {
    if (!entry.first.IsScalar() || depth > kDeepest)
      return fail(ErrorCode::kFixConfig, "[config] " + origin + ":" + std::to_string(entry.first.Mark().line + 1) + ": " + (depth > kDeepest ? "maps nested too deeply" : "a key that is no plain name"));
    const std::string key = entry.first.as<std::string>();
    const std::string path = prefix.empty() ? key : prefix + "." + key;
    const std::string where = origin + ":" + std::to_string(entry.first.Mark().line + 1);
    if (entry.second.IsMap()) {
      TESSERA_TRY(flatten(entry.second, path, origin, out, depth + 1));
    } else if (!out.emplace(path, RawValue{entry.second, where}).second) {
      return fail(ErrorCode::kFixConfig, where + ": " + path + " is given twice; remove one");
    }
  }
  return {};
}

// "[lo, hi]" -> bounds; anything else -> none.
bool bounds_of(const char* allowed, double& low, double& high) {
  return std::sscanf(allowed, "[%lf, %lf]", &low, &high) == 2;
}
std::vector<std::string> words_of(const char* allowed) {
  std::vector<std::string> words;
  std::string word;
  for (const char* c = allowed; *c != 0 && *c != '['; ++c) {
    if (*c == '|') words.push_back(word), word.clear();
    else if (*c != ' ') word += *c;
  }
  if (!word.empty()) words.push_back(word);
  return words;
}

std::string print_number(double value) {
  char text[40];
  for (int precision = 6; precision <= 17; ++precision) {
    std::snprintf(text, sizeof text, "%.*g", precision, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  return text;
}
std::string print_value(const std::string& value) {
  YAML::Emitter out;
  out << YAML::DoubleQuoted << value;
  bool plain = !value.empty() && value != "null" && value != "true" && value != "false" && value != "yes" && value != "no" && value != "~";
  for (char c : value) plain = plain && (std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '/' || c == '.');
  plain = plain && std::isalpha(static_cast<unsigned char>(value[0]));
  return plain ? value : out.c_str();
}
std::string print_value(int64_t value) { return std::to_string(value); }
std::string print_value(bool value) { return value ? "true" : "false"; }
std::string print_value(double value) { return print_number(value); }
template <size_t N>
std::string print_value(const std::array<double, N>& values) {
  std::string text = "[";
  for (size_t i = 0; i < N; ++i) text += (i ? ", " : "") + print_number(values[i]);
  return text + "]";
}

template <typename T>
const char* type_name() {
  if constexpr (std::is_same_v<T, int64_t>) return "a whole number";
  else if constexpr (std::is_same_v<T, double>) return "a number";
  else if constexpr (std::is_same_v<T, bool>) return "true or false";
  else if constexpr (std::is_same_v<T, std::string>) return "text";
  else if constexpr (std::is_same_v<T, Pair>) return "two numbers, [a, b]";
  else return "three numbers, [a, b, c]";
}

Result<void> read_number(const YAML::Node& node, double& out) {
  try {
    out = node.as<double>();
  } catch (const YAML::Exception&) {
    return fail(ErrorCode::kFixConfig, "");
  }
  return std::isfinite(out) ? Result<void>{} : fail(ErrorCode::kFixConfig, "");
}

Result<void> read_into(const YAML::Node& node, const FieldInfo& info, int64_t& out) {
  const std::string text = node.IsScalar() ? node.Scalar() : "";
  const std::string key = info.key;
  if (text == "none" && (key == "operation.stop_at_step")) return out = 0, Result<void>{};
  if (key.ends_with("_bytes")) {
    TESSERA_ASSIGN(out, parse_bytes(text));
    return {};
  }
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, out);
  if (error == std::errc{} && rest == end && !text.empty()) return {};
  double real = 0;  // 1e6 is a whole number too
  TESSERA_TRY(read_number(node, real));
  if (real != std::floor(real) || std::abs(real) > 9e15) return fail(ErrorCode::kFixConfig, "");
  out = int64_t(real);
  return {};
}
Result<void> read_into(const YAML::Node& node, const FieldInfo&, double& out) { return read_number(node, out); }
Result<void> read_into(const YAML::Node& node, const FieldInfo&, bool& out) {
  try {
    out = node.as<bool>();
  } catch (const YAML::Exception&) {
    return fail(ErrorCode::kFixConfig, "");
  }
  return {};
}
Result<void> read_into(const YAML::Node& node, const FieldInfo&, std::string& out) {
  if (node.IsNull()) return out.clear(), Result<void>{};
  if (!node.IsScalar()) return fail(ErrorCode::kFixConfig, "");
  out = node.Scalar();
  return {};
}
template <size_t N>
Result<void> read_into(const YAML::Node& node, const FieldInfo&, std::array<double, N>& out) {
  if (!node.IsSequence() || node.size() != N) return fail(ErrorCode::kFixConfig, "");
  for (size_t i = 0; i < N; ++i) TESSERA_TRY(read_number(node[i], out[i]));
  return {};
}

template <typename T>
Result<void> check_range(const FieldInfo& info, const T& value, const std::string& origin) {
  const std::string where = "[config] " + std::string(info.key) + " (" + origin + ")";
  if constexpr (std::is_same_v<T, std::string>) {
    const auto words = words_of(info.allowed);
    if (words.empty() || std::find(words.begin(), words.end(), value) != words.end()) return {};
    std::string list;
    for (const auto& word : words) list += (list.empty() ? "" : ", ") + word;
    const std::string near = nearest_word(value, words);
    return fail(ErrorCode::kFixConfig, where + ": '" + value + "' is none of: " + list + (near.empty() ? "" : "; did you mean " + near + "?"));
  } else if constexpr (!std::is_same_v<T, bool>) {
    double low = 0, high = 0;
    if (!bounds_of(info.allowed, low, high)) return {};
    const auto bad = [&](double x) { return !(x >= low && x <= high); };
    const std::string text = where + ": " + print_value(value) + " is outside " + info.allowed;
    if constexpr (std::is_arithmetic_v<T>) {
      if (bad(double(value))) return fail(ErrorCode::kFixConfig, text);
    } else {
      for (double x : value)
        if (bad(x)) return fail(ErrorCode::kFixConfig, text);
    }
  }
  return {};
}

// Takes each known key out of `raw` into the struct; whatever is left over is unknown.
struct Reader {
  RawMap& raw;
  std::map<std::string, std::string>& origins;
  Result<void> status{};
  std::vector<std::string> known{};

  template <typename T>
  void operator()(const FieldInfo& info, T& value) {
    known.push_back(info.key);
    auto it = raw.find(info.key);
    origins.try_emplace(info.key, "default");
    if (it == raw.end() || !status) return;
    auto read = read_into(it->second.node, info, value);
    if (!read) {
      const std::string detail = read.error().message.empty() ? std::string(type_name<T>()) + " expected" : read.error().message;
      status = fail(ErrorCode::kFixConfig, "[config] " + std::string(info.key) + " (" + it->second.origin + "): " + quoted(it->second.node) + ": " + detail);
      return;
    }
    status = check_range(info, value, it->second.origin);
    origins[info.key] = it->second.origin;
    raw.erase(it);
  }
};

void fill_derived(FunctionConfig& f) {
  struct Variant { const char* name; int64_t dim, depth, heads; double ratio; };
  static constexpr Variant kVariants[] = {{"vit_tiny", 192, 12, 3, 4.0}, {"vit_small", 384, 12, 6, 4.0}, {"vit_base", 768, 12, 12, 4.0},
                                          {"vit_large", 1024, 24, 16, 4.0}, {"vit_huge", 1280, 32, 16, 4.0}, {"vit_giant", 1408, 40, 16, 48.0 / 11.0}};
  for (const auto& variant : kVariants) {
    if (f.model.name != variant.name) continue;
    if (f.model.embed_dim == 0) f.model.embed_dim = variant.dim;
    if (f.model.depth == 0) f.model.depth = variant.depth;
    if (f.model.num_heads == 0) f.model.num_heads = variant.heads;
    if (f.model.mlp_ratio == 0) f.model.mlp_ratio = variant.ratio;
  }
  if (f.model.mlp_ratio == 0) f.model.mlp_ratio = 4.0;
  if (f.predictor.num_heads == 0) f.predictor.num_heads = f.model.num_heads;
}

Result<YAML::Node> parse_yaml(const std::string& text, const std::string& origin) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& e) {
    return fail(ErrorCode::kFixConfig, "[config] " + origin + ":" + std::to_string(e.mark.line + 1) + ": not valid YAML: " + e.msg);
  }
}

Result<void> read_all(RawMap raw, Config& config) {
  Reader reader{raw, config.origins};
  visit_function(config.function, reader);
  visit_operation(config.operation, reader);
  for (const auto& [key, value] : raw) {
    // After a value that cannot be read the known keys behind it are still here.
    if (std::find(reader.known.begin(), reader.known.end(), key) != reader.known.end()) continue;
    std::string near = nearest_word(key, reader.known);
    if (near.empty()) {  // the right last part in the wrong place
      const std::string tail = key.substr(key.rfind('.') + 1);
      for (const auto& known : reader.known)
        if (known.ends_with("." + tail)) near = known;
    }
    return fail(ErrorCode::kFixConfig, "[config] " + value.origin + ": there is no key " + key + (near.empty() ? "" : "; did you mean " + near + "?"));
  }
  TESSERA_TRY(reader.status);
  fill_derived(config.function);
  return check_function(config.function);
}

Result<void> add_override(const std::string& key, const std::string& value, const std::string& origin, RawMap& raw) {
  TESSERA_ASSIGN(YAML::Node node, parse_yaml(value.empty() ? "\"\"" : value, origin));
  if (node.IsMap()) return fail(ErrorCode::kFixConfig, "[config] " + origin + " " + key + ": a single value expected, found a map");
  raw[key] = {node, origin};
  return {};
}

struct Printer {
  std::string out;
  const std::map<std::string, std::string>* origins = nullptr;
  std::vector<std::string> open{};

  template <typename T>
  void operator()(const FieldInfo& info, const T& value) {
    std::vector<std::string> parts;
    std::string part;
    for (const char* c = info.key; *c; ++c) {
      if (*c == '.') parts.push_back(part), part.clear();
      else part += *c;
    }
    size_t shared = 0;
    while (shared < open.size() && shared < parts.size() && open[shared] == parts[shared]) ++shared;
    open.resize(shared);
    for (; open.size() < parts.size();) {
      out += std::string(2 * open.size(), ' ') + parts[open.size()] + ":\n";
      open.push_back(parts[open.size()]);
    }
    std::string line = std::string(2 * open.size(), ' ') + part + ": " + print_value(value);
    if (origins != nullptr) {
      auto it = origins->find(info.key);
      if (it != origins->end()) line += std::string(line.size() < 56 ? 56 - line.size() : 1, ' ') + "# " + it->second;
    }
    out += line + "\n";
  }
};

}  // namespace

std::string nearest_word(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 4) + 1;
  for (const auto& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j <= candidate.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t above = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (word[i - 1] != candidate[j - 1])});
        diagonal = above;
      }
    }
    if (row.back() < best_distance) best_distance = row.back(), best = candidate;
  }
  return best;
}

Result<int64_t> parse_bytes(const std::string& text) {
  static const std::pair<const char*, double> kUnits[] = {{"", 1}, {"B", 1}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
    {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}, {"K", 1024.0}, {"M", 1048576.0}, {"G", 1073741824.0}};
  char* rest = nullptr;
  const double number = std::strtod(text.c_str(), &rest);
  std::string unit = rest;
  std::erase(unit, ' ');
  for (const auto& [name, factor] : kUnits)
    if (rest != text.c_str() && unit == name && number >= 0 && number * factor < 9e18) return int64_t(number * factor);
  return fail(ErrorCode::kFixConfig, "'" + text + "' is no size; write 4096, 256MiB or 1GB");
}

Result<Config> parse_config(const std::string& yaml_text, const std::string& origin, const std::vector<std::string>& overrides,
                            const std::vector<std::string>& environment) {
  TESSERA_ASSIGN(YAML::Node root, parse_yaml(yaml_text, origin));
  RawMap raw;
  if (!root.IsNull() && !root.IsMap()) return fail(ErrorCode::kFixConfig, "[config] " + origin + ": a map with function: and operation: expected");
  if (root.IsMap()) TESSERA_TRY(flatten(root, "", origin, raw));
  for (const auto& entry : environment) {
    const size_t equal = entry.find('=');
    const std::string name = entry.substr(0, equal);
    if (equal == std::string::npos || (!name.starts_with("TESSERA_FUNCTION__") && !name.starts_with("TESSERA_OPERATION__"))) continue;
    std::string key;
    for (size_t i = std::string("TESSERA_").size(); i < name.size(); ++i) {
      if (name.compare(i, 2, "__") == 0) key += '.', ++i;
      else key += char(std::tolower(static_cast<unsigned char>(name[i])));
    }
    TESSERA_TRY(add_override(key, entry.substr(equal + 1), "environment " + name, raw));
  }
  for (const auto& entry : overrides) {
    const size_t equal = entry.find('=');
    if (equal == std::string::npos || equal == 0)
      return fail(ErrorCode::kUsage, "--set " + entry + ": write it as section.key=value, for instance --set function.seed=1");
    TESSERA_TRY(add_override(entry.substr(0, equal), entry.substr(equal + 1), "--set", raw));
  }
  Config config;
  TESSERA_TRY(read_all(std::move(raw), config));
  return config;
}

Result<Config> load_config(const std::string& path, const std::vector<std::string>& overrides, const std::vector<std::string>& environment) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr || std::filesystem::is_directory(path)) {
    if (file) std::fclose(file);
    return fail(ErrorCode::kFixConfig, "[config] there is no file " + path + "; configs/ has examples");
  }
  std::string text;
  char buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, file)) > 0;) text.append(buffer, got);
  std::fclose(file);
  TESSERA_ASSIGN(Config config, parse_config(text, path, overrides, environment));
  config.source_name = std::filesystem::path(path).stem().string();
  return config;
}

std::vector<std::string> process_environment() {
  std::vector<std::string> out;
  for (char** entry = environ; *entry != nullptr; ++entry) out.emplace_back(*entry);
  return out;
}

std::string print_function(const FunctionConfig& function) {
  Printer printer;
  visit_function(function, printer);
  return printer.out;
}
std::string print_operation(const OperationConfig& operation) {
  Printer printer;
  visit_operation(operation, printer);
  return printer.out;
}
Result<FunctionConfig> parse_function(const std::string& yaml_text) {
  TESSERA_ASSIGN(Config config, parse_config(yaml_text, "function", {}));
  return config.function;
}
Result<OperationConfig> parse_operation(const std::string& yaml_text) {
  TESSERA_ASSIGN(YAML::Node root, parse_yaml(yaml_text, "operation"));
  RawMap raw;
  if (root.IsMap()) TESSERA_TRY(flatten(root, "", "operation", raw));
  Config config;
  Reader reader{raw, config.origins};
  visit_operation(config.operation, reader);
  TESSERA_TRY(reader.status);
  return config.operation;
}

std::string print_resolved(const Config& config) {
  Printer printer;
  printer.origins = &config.origins;
  visit_function(config.function, printer);
  visit_operation(config.operation, printer);
  return "# function_id: " + to_hex(function_id(config.function)) + "\n" + printer.out;
}

Hash128 function_id(const FunctionConfig& function) {
  const FunctionConfig standard;
  std::map<std::string, std::string> defaults;
  visit_function(standard, [&](const FieldInfo& info, const auto& value) { defaults[info.key] = print_value(value); });
  Hasher hasher;
  visit_function(function, [&](const FieldInfo& info, const auto& value) {
    const std::string text = print_value(value);
    if (!info.late || text != defaults[info.key]) hasher.add_string(std::string(info.key) + "=" + text);
  });
  return hasher.finish();
}

Status check_function(const FunctionConfig& f) {
  const auto bad = [](const std::string& text) { return fail(ErrorCode::kFixConfig, "[config] " + text); };
  const auto n = [](int64_t x) { return std::to_string(x); };
  const auto& m = f.model;
  if (m.embed_dim <= 0 || m.depth <= 0 || m.num_heads <= 0)
    return bad("function.model.name custom needs function.model.embed_dim, depth and num_heads");
  if (m.image_size % m.patch_size != 0)
    return bad("function.model.image_size " + n(m.image_size) + " is no multiple of patch_size " + n(m.patch_size) + "; use " + n(m.image_size / m.patch_size * m.patch_size));
  if (m.embed_dim % 4 != 0) return bad("function.model.embed_dim " + n(m.embed_dim) + " is no multiple of 4, which the position table needs");
  if (m.embed_dim % m.num_heads != 0) return bad("function.model.embed_dim " + n(m.embed_dim) + " is no multiple of num_heads " + n(m.num_heads));
  if (f.predictor.embed_dim % 4 != 0) return bad("function.predictor.embed_dim " + n(f.predictor.embed_dim) + " is no multiple of 4, which the position table needs");
  if (f.predictor.embed_dim % f.predictor.num_heads != 0)
    return bad("function.predictor.embed_dim " + n(f.predictor.embed_dim) + " is no multiple of its num_heads " + n(f.predictor.num_heads) + "; set function.predictor.num_heads");
  if (f.batch.tiles % f.batch.tiles_per_mask_group != 0)
    return bad("function.batch.tiles " + n(f.batch.tiles) + " is no multiple of tiles_per_mask_group " + n(f.batch.tiles_per_mask_group));
  const auto ordered = [](const Pair& p) { return p[0] <= p[1]; };
  if (!ordered(f.data.crop_scale) || !ordered(f.data.crop_ratio)) return bad("function.data.crop_scale and crop_ratio must be [low, high]");
  if (!ordered(f.masks.target_scale) || !ordered(f.masks.target_aspect) || !ordered(f.masks.context_scale) || !ordered(f.masks.context_aspect))
    return bad("function.masks scales and aspects must be [low, high]");
  if (f.target_precision == "fp8" && f.precision == "fp32")
    return bad("function.target_precision: fp8 gives its results in bfloat16, and function.precision is fp32; set function.precision: bf16, or target_precision: same");
  if (f.steps > 0 && f.warmup_steps > f.steps) return bad("function.warmup_steps " + n(f.warmup_steps) + " exceeds function.steps " + n(f.steps));
  if (f.data.manifest_digest != "auto" && !hash_from_hex(f.data.manifest_digest))
    return bad("function.data.manifest_digest must be auto or 32 hex digits as `tessera data index` prints");
  if (auto masks = check_masks(f.masks, int(m.grid()), int(m.grid())); !masks) return bad(masks.error().message);
  return {};
}

Result<RunLength> run_length(const FunctionConfig& function, int64_t sample_count) {
  RunLength out;
  out.steps_per_epoch = sample_count / function.batch.global();
  if (out.steps_per_epoch == 0)
    return fail(ErrorCode::kFixConfig, "[config] the dataset has " + std::to_string(sample_count) + " samples, fewer than one step of " +
                                           std::to_string(function.batch.global()) + " (function.batch.tile_size x tiles); lower one of them");
  out.total_steps = function.steps > 0 ? function.steps : function.epochs * out.steps_per_epoch;
  out.warmup_steps = function.steps > 0 ? function.warmup_steps : int64_t(function.optimizer.warmup_epochs * double(out.steps_per_epoch));
  return out;
}

int64_t tile_pixel_bytes(const FunctionConfig& f) { return f.batch.tile_size * f.model.image_size * f.model.image_size * 3; }

std::string configuration_reference() {
  std::string out =
      "# Configuration reference\n\nGenerated from the schema (`tessera config reference`); do not edit. Any key can be set on the command line with\n"
      "`--set function.seed=1` or in the environment as `TESSERA_OPERATION__HTTP__PORT=8080`.\n\n"
      "`function:` decides the bits of a run and is hashed to its function_id; `operation:` may change between starts.\n\n"
      "| key | default | allowed | meaning |\n|---|---|---|---|\n";
  const auto row = [&](const FieldInfo& info, const auto& value) {
    std::string allowed = info.allowed;
    for (size_t at = 0; (at = allowed.find('|', at)) != std::string::npos; at += 2) allowed.insert(at, "\\");
    out += "| `" + std::string(info.key) + "` | `" + print_value(value) + "` | " + allowed + " | " + info.meaning + " |\n";
  };
  Config config;
  visit_function(config.function, row);
  visit_operation(config.operation, row);
  return out;
}

}  // namespace tessera
