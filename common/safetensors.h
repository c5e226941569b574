// Safetensors files without LibTorch: 8 bytes little-endian header size, a JSON header {name: {dtype, shape,
// data_offsets}, "__metadata__": {...}}, then the data. Specification: huggingface/safetensors README ("Format").
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/hash.h"
#include "common/result.h"

namespace tessera {

struct TensorView {
  std::string name;
  std::string dtype;  // "F32", "BF16", "F16", "I64", "I32", "U8", "BOOL", ...
  std::vector<int64_t> shape;
  const void* data = nullptr;  // into the mapped file; lives as long as the SafetensorsFile
  int64_t size_bytes = 0;
  int64_t count() const;
};

// A file mapped read-only. Names in bytewise order.
class SafetensorsFile {
 public:
  // Errors: kIo; kFixData naming file, tensor and what is wrong (truncated, header too large or no JSON, offsets that
  // overlap, leave holes or do not fit dtype and shape).
  static Result<SafetensorsFile> open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::vector<TensorView>& tensors() const;
  const TensorView* find(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct WrittenFile {
  int64_t size_bytes = 0;
  Hash128 hash;
};
// Writes the tensors in the order given, fsyncs the file. The header is padded so that data starts on 8 bytes.
// Errors: kIo ("No space left on device" ...); a partial file is removed.
Result<WrittenFile> write_safetensors(const std::string& path, const std::vector<TensorView>& tensors,
                                      const std::map<std::string, std::string>& metadata);

// Bytes of an element, 0 for an unknown dtype.
int64_t dtype_bytes(const std::string& dtype);

// SHA-256 over all tensors of the files in order of name: the name, then the elements as fp32 little-endian (F32, BF16
// and F16 are widened; others are hashed as stored). Hex. Error: kFixData if a name is in two files.
Result<std::string> canonical_sha256(const std::vector<std::string>& paths);

}  // namespace tessera
