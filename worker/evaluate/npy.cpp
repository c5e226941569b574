#include "worker/evaluate/npy.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <regex>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tessera::evaluate {
namespace {

int64_t bytes_of(const std::string& dtype, const std::vector<int64_t>& shape) {
  int64_t out = dtype == "<f4" ? 4 : 8;
  for (const int64_t size : shape) out *= size;
  return out;
}

tl::unexpected<Error> refuse(const std::string& path, const std::string& why) { return fail(ErrorCode::kFixData, path + ": " + why + "; write it again with tessera embed"); }

}  // namespace

std::string npy_header(const std::string& dtype, const std::vector<int64_t>& shape) {
  std::string text = "{'descr': '" + dtype + "', 'fortran_order': False, 'shape': (";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? " " : "") + std::to_string(shape[i]) + (shape.size() == 1 || i + 1 < shape.size() ? "," : "");
  text += "), }";
  constexpr size_t kPreamble = 10, kAlign = 64;
  text.append((kAlign - (kPreamble + text.size() + 1) % kAlign) % kAlign, ' ');
  text += '\n';
  std::string out("\x93NUMPY\x01\x00", 8);
  out += char(text.size() & 0xFF);
  out += char(text.size() >> 8);
  return out + text;
}

Result<NpyWriter> NpyWriter::create(const std::string& path, const std::string& dtype, const std::vector<int64_t>& shape) {
  NpyWriter out;
  out.path_ = path;
  out.missing_bytes_ = bytes_of(dtype, shape);
  out.file_.open(path, std::ios::binary | std::ios::trunc);
  out.file_ << npy_header(dtype, shape);
  if (!out.file_) return fail(ErrorCode::kIo, "cannot write " + path + ": " + std::strerror(errno));
  return out;
}

Status NpyWriter::append(const void* data, int64_t size_bytes) {
  file_.write(static_cast<const char*>(data), size_bytes);
  missing_bytes_ -= size_bytes;
  if (!file_) return fail(ErrorCode::kIo, "cannot write " + path_ + ": " + std::strerror(errno));
  return {};
}

Status NpyWriter::close() {
  file_.close();
  if (!file_) return fail(ErrorCode::kIo, "cannot write " + path_ + ": " + std::strerror(errno));
  if (missing_bytes_ != 0) return fail(ErrorCode::kInternal, path_ + " is " + std::to_string(missing_bytes_) + " bytes short of its shape");
  return {};
}

Result<NpyFile> NpyFile::open(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return fail(ErrorCode::kFixData, path + ": " + std::strerror(errno));
  struct stat status {};
  ::fstat(file, &status);
  NpyFile out;
  out.size_bytes_ = status.st_size;
  void* base = out.size_bytes_ > 0 ? ::mmap(nullptr, size_t(out.size_bytes_), PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  ::close(file);
  if (base == MAP_FAILED) return refuse(path, "not an NPY file");
  out.base_ = std::shared_ptr<void>(base, [size = size_t(out.size_bytes_)](void* mapped) { ::munmap(mapped, size); });
  const char* bytes = static_cast<const char*>(base);
  if (out.size_bytes_ < 10 || std::memcmp(bytes, "\x93NUMPY\x01\x00", 8) != 0) return refuse(path, "not an NPY file of version 1.0");
  out.header_bytes_ = 10 + int64_t(uint8_t(bytes[8])) + (int64_t(uint8_t(bytes[9])) << 8);
  if (out.header_bytes_ > out.size_bytes_) return refuse(path, "its header is cut off");
  const std::string header(bytes + 10, size_t(out.header_bytes_ - 10));
  std::smatch match;
  static const std::regex kForm(R"(\{'descr': '(<f4|<i8)', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \}\s*)");
  if (!std::regex_match(header, match, kForm)) return refuse(path, "its header is none that this program writes");
  out.dtype_ = match[1];
  const std::string shape = match[2];
  static const std::regex kNumber("[0-9]{1,15}");
  for (auto it = std::sregex_iterator(shape.begin(), shape.end(), kNumber); it != std::sregex_iterator(); ++it) out.shape_.push_back(std::stoll(it->str()));
  int64_t elements = 1;
  for (const int64_t size : out.shape_)
    if (__builtin_mul_overflow(elements, size, &elements)) return refuse(path, "its shape is absurd");
  if (elements > out.size_bytes_ || bytes_of(out.dtype_, out.shape_) != out.data_bytes()) return refuse(path, "it holds " + std::to_string(out.data_bytes()) + " bytes, another number than its shape says");
  return out;
}

}  // namespace tessera::evaluate
