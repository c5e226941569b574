// Golden numbers of the published implementation as tensors and configurations (the goldens' README is the format).
#pragma once

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/config.h"
#include "worker/model/engine.h"

namespace tessera::goldens {

// TESSERA_GOLDENS, or ../shared/goldens.
std::filesystem::path folder();
// Entries of folder()/below whose names match a shell pattern, sorted. Empty where the kind is absent.
std::vector<std::filesystem::path> find(const std::string& below, const std::string& pattern);

using Tensors = std::map<std::string, at::Tensor>;
// Every tensor of a safetensors file, copied. Throws std::runtime_error: a case that cannot be read fails.
Tensors load(const std::filesystem::path& path);
nlohmann::json load_json(const std::filesystem::path& path);

// The function that a `config` object of the goldens describes.
FunctionConfig function_of(const nlohmann::json& config);

// Golden name of a tensor of ours: "context_encoder.x" is their "encoder.x".
std::string golden_name(const std::string& ours);
// Fills weights and target of the state: from tensors where they are there (a missing target is encoder * 0.875 when
// `target_of_encoder` says so, else a copy), position tables included.
enum class MissingTarget { kCopy, kScaled };
void fill_state(model::State& state, const Tensors& weights, MissingTarget missing);
// The README's formula weights.
void fill_formula(model::State& state, uint64_t seed);
float formula_value(const std::string& name, size_t dimensions, uint64_t seed, uint64_t index);

// Tile from images_u8 [b, 3, S, S] and masks "<enc>j", "<pred>i".
model::Tile tile_of(const at::Tensor& images_bchw, const Tensors& tensors, const std::string& context_prefix, const std::string& target_prefix);

// max|a - b| / max|b|; infinite when shapes differ or a is not finite.
double relative(const at::Tensor& a, const at::Tensor& b);
double max_abs(const at::Tensor& a, const at::Tensor& b);
// EXPECT_TRUE(within("gradients", difference, tolerance)): also keeps the largest difference of each item. At the end of the
// program the items are printed as the table of docs/fidelity.md when TESSERA_FIDELITY is set.
testing::AssertionResult within(const std::string& item, double difference, double tolerance);
// Without elements D..2D-1 of a qkv bias, whose true gradient is zero.
at::Tensor without_key_bias(const std::string& name, const at::Tensor& tensor);

}  // namespace tessera::goldens

// Skips (fails under TESSERA_REQUIRE_SHARED=1) when the folder is not there; skips by name when the kind is absent.
#define TESSERA_GOLDEN_CASES(cases, below, pattern)                                                                      \
  const auto cases = ::tessera::goldens::find(below, pattern);                                                           \
  if (cases.empty()) {                                                                                                   \
    const std::string where_ = (::tessera::goldens::folder() / below / pattern).string();                                \
    const char* required_ = std::getenv("TESSERA_REQUIRE_SHARED");                                                       \
    if (!std::filesystem::exists(::tessera::goldens::folder()) && required_ && std::string(required_) == "1")            \
      FAIL() << "no goldens at " << ::tessera::goldens::folder() << "; set TESSERA_GOLDENS";                             \
    GTEST_SKIP() << "no " << where_;                                                                                     \
  }
