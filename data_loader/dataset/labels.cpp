#include "data_loader/dataset/labels.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

namespace tessera::data {
namespace {

constexpr size_t kMaxLabels = 256, kMaxNameBytes = 128;

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

}  // namespace

Result<double> parse_class(std::string_view text) {
  const std::string_view digits = trimmed(text);
  int32_t value = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || end != digits.data() + digits.size() || digits.empty() || value < 0)
    return fail(ErrorCode::kFixData, "holds '" + std::string(digits.substr(0, 40)) + "', not an integer class from 0");
  return double(value);
}

Status parse_json_labels(std::string_view text, SampleLabels* labels) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return fail(ErrorCode::kFixData, "is no JSON object");
  for (const auto& [name, value] : json.items()) {
    if (name == "class_name" && value.is_string()) labels->class_name = value.get<std::string>();
    if (name.size() > kMaxNameBytes || !(value.is_number() || value.is_boolean())) continue;
    const double number = value.is_boolean() ? double(value.get<bool>()) : value.get<double>();
    if (std::isfinite(number)) labels->values.emplace(name, number);
  }
  return {};
}

Result<std::vector<std::string>> label_columns(const std::vector<const SampleLabels*>& samples) {
  std::set<std::string> names;
  for (const SampleLabels* sample : samples) {
    for (const auto& [name, value] : sample->values) names.insert(name);
    if (names.size() > kMaxLabels) return fail(ErrorCode::kFixData, "[data_loader] the .json files hold more than " + std::to_string(kMaxLabels) + " different numbers; keep the ones that are labels");
  }
  std::vector<std::string> out;
  if (names.erase(kClassLabel)) out.push_back(kClassLabel);
  out.insert(out.end(), names.begin(), names.end());
  return out;
}

std::vector<std::string> parse_class_names(std::string_view text) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    out.emplace_back(trimmed(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  while (!out.empty() && out.back().empty()) out.pop_back();
  return out;
}

}  // namespace tessera::data
