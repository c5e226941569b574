// Reads the pickle inside a torch.save file without executing anything: a fixed list of opcodes, three globals
// (collections.OrderedDict, torch._utils._rebuild_tensor_v2, _rebuild_parameter) and the storage types; everything else
// is refused with the byte and the opcode. Tensors come out as places in the archive, their bytes unread.
// Limits: 64 MiB of pickle, 4 million values, nesting 64; no cycles (a container is closed once something holds it).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/result.h"
#include "worker/import/zip_archive.h"

namespace tessera::import {

// A tensor as a strided window of a record data/<key>. Bounds against the record are checked when it is read.
struct PickledTensor {
  std::string key;
  std::string dtype;  // as in safetensors: "F32", "BF16", "F16", "F64", "I64", ...
  int64_t offset = 0;  // elements
  std::vector<int64_t> shape, strides;
  int64_t count() const;
  bool contiguous() const;
};

struct Value;
using ValuePtr = std::shared_ptr<Value>;
struct None {};
struct Global {
  std::string name;  // "module attribute"
};
struct Storage {
  std::string key, dtype;
  int64_t count = 0;
};
struct Tuple {
  std::vector<ValuePtr> items;
};
struct List {
  std::vector<ValuePtr> items;
};
struct Dict {
  std::vector<std::pair<ValuePtr, ValuePtr>> items;  // in the file's order
  bool ordered = false;
};
struct Value {
  std::variant<None, bool, int64_t, double, std::string, Tuple, List, Dict, Global, Storage, PickledTensor> data;
  int depth = 0;
  bool held = false;  // inside a container: must not change any more

  template <typename T>
  const T* as() const {
    return std::get_if<T>(&data);
  }
  // The dict's value under a string key, or null when there is none or this is no dict.
  const Value* get(std::string_view key) const;
};

// The root value of archive's data.pkl. Error: kFixData "[import] FILE: data.pkl byte 17, GLOBAL: ...".
Result<ValuePtr> read_pickle(const ZipArchive& archive);
// The same over bytes in memory, named `name` in messages.
Result<ValuePtr> parse_pickle(std::string_view bytes, const ZipArchive& archive);

}  // namespace tessera::import
