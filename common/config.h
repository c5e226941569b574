// The configuration of a run: two parts, `function:` (decides bits, hashed to function_id) and `operation:` (free to
// change between starts). One schema (config_schema.cpp) serves parsing, checking, printing, --set, the environment and
// docs/configuration.md; a key that it does not know is an error with the nearest name.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/hash.h"
#include "common/result.h"

namespace tessera {

using Pair = std::array<double, 2>;
using Triple = std::array<double, 3>;

struct ModelConfig {
  std::string name = "vit_tiny";  // vit_tiny ... vit_giant, or "custom" with the sizes below
  int64_t patch_size = 16;
  int64_t image_size = 224;
  int64_t embed_dim = 0;  // 0: the name's
  int64_t depth = 0;
  int64_t num_heads = 0;
  double mlp_ratio = 0;
  bool depth_rescale = false;  // the published constructor's rescale, which its own initialisation overwrites
  int64_t grid() const { return image_size / patch_size; }
  int64_t hidden_dim() const { return int64_t(double(embed_dim) * mlp_ratio + 1e-6); }
};

struct PredictorConfig {
  int64_t embed_dim = 384;
  int64_t depth = 6;
  int64_t num_heads = 0;  // 0: as many as the encoder
  double mlp_ratio = 4.0;
};

struct DataConfig {
  std::string manifest_digest = "auto";
  std::string shuffle = "global";  // global | block
  Pair crop_scale{0.3, 1.0};
  Pair crop_ratio{0.75, 1.3333333};
  std::string interpolation = "bilinear";  // bilinear | bicubic
  bool horizontal_flip = false;
  Triple mean{0.485, 0.456, 0.406};
  Triple std{0.229, 0.224, 0.225};
  std::string undecodable = "fail";  // fail | grey
};

struct MaskConfig {
  std::string kind = "multiblock";  // multiblock | random | block | rasterized
  std::string mode = "uniform";     // uniform | reference (multiblock only)
  int64_t targets = 4;
  Pair target_scale{0.15, 0.2};
  Pair target_aspect{0.75, 1.5};
  int64_t contexts = 1;
  Pair context_scale{0.85, 1.0};
  Pair context_aspect{1.0, 1.0};
  bool allow_overlap = false;
  std::string target_masking = "output";  // output | input: where the target encoder is cut down to a target block
  int64_t min_keep = 10;
  int64_t context_multiple = 1;
};

struct BatchConfig {
  int64_t tile_size = 32;
  int64_t tiles = 4;
  int64_t tiles_per_mask_group = 1;
  int64_t global() const { return tile_size * tiles; }
  int64_t mask_groups() const { return tiles / tiles_per_mask_group; }
};

struct OptimizerConfig {
  double lr = 1.0e-3;
  double start_lr = 2.0e-4;
  double final_lr = 1.0e-6;
  double warmup_epochs = 2;
  double weight_decay = 0.04;
  double final_weight_decay = 0.4;
  Pair betas{0.9, 0.999};
  double eps = 1.0e-8;
  Pair ema{0.996, 1.0};
  double ipe_scale = 1.0;
  std::string loss = "smooth_l1";
};

struct FunctionConfig {
  int64_t version = 1;
  int64_t seed = 0;
  ModelConfig model;
  PredictorConfig predictor;
  DataConfig data;
  MaskConfig masks;
  BatchConfig batch;
  OptimizerConfig optimizer;
  int64_t epochs = 10;       // used when steps = 0
  int64_t steps = 0;         // > 0: the run's length in steps; warmup_steps then replaces warmup_epochs
  int64_t warmup_steps = 0;
  std::string precision = "fp32";  // fp32 | bf16 | published
  std::string target_precision = "same";  // same | fp8
  std::string reduction = "tree";  // tree | fixed32 | fast
};

struct OperationConfig {
  std::string run_id = "auto";
  std::string run_dir = "auto";
  std::string data_path;
  struct { std::string cache_dir = "auto"; int64_t cache_bytes = int64_t{16} << 30; int64_t retries = 8; int64_t stall_seconds = 20; } remote;
  std::string transport = "auto";  // auto | tcp | shm
  std::string device = "auto";
  int64_t compute_threads = 1;
  int64_t workers = 2;
  int64_t loaders = 1;
  int64_t loader_threads = 1;
  int64_t min_workers = 1;
  int64_t spares = 0;
  struct { std::string bind = "127.0.0.1"; int64_t port = 0; } control;
  std::string advertise = "auto";
  struct { std::string bind = "127.0.0.1"; int64_t port = 0; } http;
  std::string ema_distribution = "broadcast";
  struct { int64_t every_steps = 200; int64_t keep_last = 3; int64_t keep_every = 0; } checkpoint;
  int64_t max_skipped_steps = 10;
  int64_t audit_every_steps = 0;
  int64_t data_bad_budget = 100;
  int64_t host_prefetch_bytes = int64_t{256} << 20;
  int64_t stop_at_step = 0;  // 0: none
  struct { int64_t every_steps = 0; std::string at_end = "none"; std::string train_data; std::string test_data; int64_t train_images = 4000; int64_t test_images = 2000; } evaluate;
  struct { std::string format = "text"; std::string level = "info"; } log;
};

struct Config {
  FunctionConfig function;
  OperationConfig operation;
  std::map<std::string, std::string> origins;  // dotted key -> "default", "configs/a.yaml:12", "--set", "environment"
  std::string source_name;                     // the config file's name without folder and .yaml: the default run id
};

// Reads a file, then TESSERA_SECTION__KEY=... variables of `environment` ("NAME=value" entries), then --set overrides
// ("function.seed=1"), in rising priority; fills derived values (model sizes by name, heads); checks ranges.
// Errors: kFixConfig (unknown key with the nearest name, wrong type, value out of range), each with its origin.
Result<Config> load_config(const std::string& path, const std::vector<std::string>& overrides,
                           const std::vector<std::string>& environment = {});
Result<Config> parse_config(const std::string& yaml_text, const std::string& origin, const std::vector<std::string>& overrides,
                            const std::vector<std::string>& environment = {});
// The process's environment as load_config wants it.
std::vector<std::string> process_environment();

// The part that travels to workers and loaders; parse(print(x)) == x.
std::string print_function(const FunctionConfig& function);
Result<FunctionConfig> parse_function(const std::string& yaml_text);
std::string print_operation(const OperationConfig& operation);
Result<OperationConfig> parse_operation(const std::string& yaml_text);

// Every value with its origin as a comment; loads again as a config.
std::string print_resolved(const Config& config);

// XXH3-128 over "key=value" lines of the function values in schema order; keys that came after the first runs (FieldInfo::late)
// only where they differ from their default.
Hash128 function_id(const FunctionConfig& function);

// Cross-field rules: divisibility, heads, mask geometry. Errors: kFixConfig with the fix.
Status check_function(const FunctionConfig& function);

// Positions of a run. steps_per_epoch = floor(samples / global batch).
struct RunLength {
  int64_t steps_per_epoch = 0;
  int64_t total_steps = 0;
  int64_t warmup_steps = 0;  // int(warmup_epochs * steps_per_epoch) or function.warmup_steps
};
// Error: kFixConfig if the dataset holds fewer samples than one step.
Result<RunLength> run_length(const FunctionConfig& function, int64_t sample_count);

// docs/configuration.md, from the schema.
std::string configuration_reference();

// "256MiB", "1GB", "4096" -> bytes. Error: kFixConfig.
Result<int64_t> parse_bytes(const std::string& text);

// Bytes of a tile's pixels: tile_size x S x S x 3 uint8.
int64_t tile_pixel_bytes(const FunctionConfig& function);

// The word of `candidates` nearest to `word` by edit distance, or empty if none is near.
std::string nearest_word(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace tessera
