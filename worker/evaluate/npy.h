// NumPy's NPY format, version 1.0, written piece by piece. Specification: numpy.lib.format ("Format Version 1.0"): the bytes
// \x93NUMPY 1 0, the header's length as little-endian u16, a Python dict padded with spaces to a multiple of 64 and ended
// by a newline, then the elements in C order.
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::evaluate {

// dtype: NumPy's description, "<f4", "<i8". Pure. The whole preamble, a multiple of 64 bytes.
std::string npy_header(const std::string& dtype, const std::vector<int64_t>& shape);

// An array whose shape is known before its elements.
class NpyWriter {
 public:
  // Error: kIo.
  static Result<NpyWriter> create(const std::string& path, const std::string& dtype, const std::vector<int64_t>& shape);
  // Error: kIo (no space left).
  Status append(const void* data, int64_t size_bytes);
  // Error: kIo, also when the elements are not as many as the shape says.
  Status close();

 private:
  std::string path_;
  std::ofstream file_;
  int64_t missing_bytes_ = 0;
};

// An array in C order mapped for reading: float32 or int64, as this program writes them.
class NpyFile {
 public:
  // Errors: kFixData naming the file and what is wrong (no NPY, another dtype or order, truncated).
  static Result<NpyFile> open(const std::string& path);
  const std::vector<int64_t>& shape() const { return shape_; }
  const std::string& dtype() const { return dtype_; }
  const void* data() const { return static_cast<const char*>(base_.get()) + header_bytes_; }
  int64_t data_bytes() const { return size_bytes_ - header_bytes_; }

 private:
  NpyFile() = default;
  std::shared_ptr<void> base_;  // unmaps
  int64_t size_bytes_ = 0, header_bytes_ = 0;
  std::string dtype_;
  std::vector<int64_t> shape_;
};

}  // namespace tessera::evaluate
