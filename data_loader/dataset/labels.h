// Labels of a sample: named numbers from WebDataset's key.cls and key.json, or from the folder an image lies in.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace tessera::data {

// "class" is the one that probes train on by default; the others keep the names they have in key.json.
inline constexpr const char* kClassLabel = "class";

struct SampleLabels {
  std::map<std::string, double> values;
  std::string class_name;  // from key.json; may be empty
  bool has_class() const { return values.contains(kClassLabel); }
};

// key.cls: an integer class. Error: what is wrong, without its place (the caller knows it).
Result<double> parse_class(std::string_view text);

// key.json: the finite numbers and booleans of its top level become labels, "class_name" (a string) the class's name;
// anything else is passed over. Labels that are already there (from key.cls) win. Error as above.
Status parse_json_labels(std::string_view text, SampleLabels* labels);

// Union of the label names of all samples: "class" first, then bytewise. Error kFixData: more than 256.
Result<std::vector<std::string>> label_columns(const std::vector<const SampleLabels*>& samples);

// Names of classes 0, 1, ... from a classes.txt: one a line, trailing blank lines dropped.
std::vector<std::string> parse_class_names(std::string_view text);

}  // namespace tessera::data
