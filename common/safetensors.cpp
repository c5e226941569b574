#include "common/safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tessera {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

std::string why() { return std::strerror(errno); }

Result<TensorView> parse_entry(const std::string& path, const std::string& name, const nlohmann::json& entry, const char* data, uint64_t data_bytes) {
  const auto bad = [&](const std::string& what) { return fail(ErrorCode::kFixData, path + ": tensor " + name + ": " + what); };
  TensorView view;
  view.name = name;
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() || !entry.contains("shape") || !entry["shape"].is_array() ||
      !entry.contains("data_offsets") || !entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2)
    return bad("dtype, shape and data_offsets expected");
  view.dtype = entry["dtype"].get<std::string>();
  const int64_t element = dtype_bytes(view.dtype);
  if (element == 0) return bad("unknown dtype " + view.dtype);
  __int128 bytes = element;
  for (const auto& side : entry["shape"]) {
    if (!side.is_number_unsigned()) return bad("shape must hold whole numbers");
    view.shape.push_back(int64_t(side.get<uint64_t>()));
    bytes *= view.shape.back();
    if (view.shape.back() < 0 || bytes > __int128(data_bytes)) return bad("shape is larger than the file");
  }
  const auto& offsets = entry["data_offsets"];
  if (!offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) return bad("data_offsets must be whole numbers");
  const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  if (begin > end || end > data_bytes) return bad("data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) + ") outside the data of " + std::to_string(data_bytes) + " bytes");
  if (__int128(end - begin) != bytes) return bad("data_offsets hold " + std::to_string(end - begin) + " bytes, dtype and shape need " + std::to_string(int64_t(bytes)));
  view.data = data + begin;
  view.size_bytes = int64_t(end - begin);
  return view;
}

Status check_cover(const std::string& path, std::vector<TensorView> views, const char* data, uint64_t data_bytes) {
  std::sort(views.begin(), views.end(), [](const auto& a, const auto& b) {
    return a.data != b.data ? a.data < b.data : a.size_bytes < b.size_bytes;
  });
  const char* at = data;
  for (const auto& view : views) {
    if (view.data != at) return fail(ErrorCode::kFixData, path + ": tensor " + view.name + ": overlaps its neighbour or leaves a hole before it");
    at += view.size_bytes;
  }
  if (at != data + data_bytes) return fail(ErrorCode::kFixData, path + ": " + std::to_string(data + data_bytes - at) + " bytes behind the last tensor");
  return {};
}

class File {
 public:
  explicit File(const std::string& path) : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
    if (!done_) ::unlink(path_.c_str());
  }
  bool is_open() const { return fd_ >= 0; }
  Status write(const void* data, size_t size) {
    hasher_.add_bytes(data, size);
    size_ += int64_t(size);
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t put = ::write(fd_, at, std::min<size_t>(size, size_t{8} << 20));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return fail(ErrorCode::kIo, "cannot write " + path_ + ": " + why());
      at += put, size -= size_t(put);
    }
    return {};
  }
  Result<WrittenFile> finish() {
    if (::fsync(fd_) != 0) return fail(ErrorCode::kIo, "cannot write " + path_ + ": " + why());
    done_ = true;
    return WrittenFile{size_, hasher_.finish()};
  }

 private:
  std::string path_;
  int fd_;
  bool done_ = false;
  int64_t size_ = 0;
  Hasher hasher_;
};

float widen(const TensorView& view, int64_t i) {
  const char* base = static_cast<const char*>(view.data);
  if (view.dtype == "F32") {
    float value;
    std::memcpy(&value, base + 4 * i, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, base + 2 * i, 2);
  if (view.dtype == "BF16") return std::bit_cast<float>(uint32_t(half) << 16);
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | mantissa << 13);
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(float(mantissa) * 0x1p-24f));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

}  // namespace

int64_t dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, int64_t> sizes{{"F64", 8}, {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4}, {"U32", 4}, {"F16", 2}, {"BF16", 2},
                                                    {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},  {"BOOL", 1}};
  const auto it = sizes.find(dtype);
  return it == sizes.end() ? 0 : it->second;
}

int64_t TensorView::count() const {
  const int64_t element = dtype_bytes(dtype);
  return element ? size_bytes / element : 0;
}

struct SafetensorsFile::Impl {
  void* map = MAP_FAILED;
  size_t map_bytes = 0;
  std::vector<TensorView> tensors;
  std::map<std::string, std::string> metadata;
  ~Impl() {
    if (map != MAP_FAILED) munmap(map, map_bytes);
  }
};

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
const std::vector<TensorView>& SafetensorsFile::tensors() const { return impl_->tensors; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return impl_->metadata; }
const TensorView* SafetensorsFile::find(const std::string& name) const {
  const auto it = std::lower_bound(impl_->tensors.begin(), impl_->tensors.end(), name, [](const TensorView& view, const std::string& n) { return view.name < n; });
  return it != impl_->tensors.end() && it->name == name ? &*it : nullptr;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info{};
  if (fd < 0 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    const std::string cause = fd < 0 ? why() : "not a file";
    if (fd >= 0) ::close(fd);
    return fail(ErrorCode::kIo, "cannot read " + path + ": " + cause);
  }
  auto impl = std::make_unique<Impl>();
  impl->map_bytes = size_t(info.st_size);
  if (impl->map_bytes >= 8) impl->map = mmap(nullptr, impl->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  ::close(fd);
  if (impl->map == MAP_FAILED) return fail(ErrorCode::kFixData, path + ": " + std::to_string(info.st_size) + " bytes are no safetensors file");
  const char* bytes = static_cast<const char*>(impl->map);
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes, 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > impl->map_bytes - 8)
    return fail(ErrorCode::kFixData, path + ": header of " + std::to_string(header_bytes) + " bytes in a file of " + std::to_string(impl->map_bytes) + ": truncated or no safetensors file");
  const auto header = nlohmann::json::parse(bytes + 8, bytes + 8 + header_bytes, nullptr, false);
  if (!header.is_object()) return fail(ErrorCode::kFixData, path + ": the header is no JSON object");
  const char* data = bytes + 8 + header_bytes;
  const uint64_t data_bytes = impl->map_bytes - 8 - header_bytes;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return fail(ErrorCode::kFixData, path + ": __metadata__ is no object");
      for (const auto& [key, value] : entry.items()) impl->metadata[key] = value.is_string() ? value.get<std::string>() : value.dump();
      continue;
    }
    TESSERA_ASSIGN(TensorView view, parse_entry(path, name, entry, data, data_bytes));
    impl->tensors.push_back(std::move(view));
  }
  TESSERA_TRY(check_cover(path, impl->tensors, data, data_bytes));
  std::sort(impl->tensors.begin(), impl->tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return SafetensorsFile(std::move(impl));
}

Result<WrittenFile> write_safetensors(const std::string& path, const std::vector<TensorView>& tensors, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + uint64_t(tensor.size_bytes)}}};
    offset += uint64_t(tensor.size_bytes);
  }
  std::string text = tensors.empty() && metadata.empty() ? "{}" : header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  File file(path);
  if (!file.is_open()) return fail(ErrorCode::kIo, "cannot write " + path + ": " + why());
  const uint64_t header_bytes = text.size();
  TESSERA_TRY(file.write(&header_bytes, 8));
  TESSERA_TRY(file.write(text.data(), text.size()));
  for (const auto& tensor : tensors) TESSERA_TRY(file.write(tensor.data, size_t(tensor.size_bytes)));
  return file.finish();
}

Result<std::string> canonical_sha256(const std::vector<std::string>& paths) {
  std::vector<SafetensorsFile> files;
  std::map<std::string, TensorView> tensors;
  for (const auto& path : paths) {
    TESSERA_ASSIGN(SafetensorsFile file, SafetensorsFile::open(path));
    for (const auto& view : file.tensors())
      if (!tensors.emplace(view.name, view).second) return fail(ErrorCode::kFixData, path + ": tensor " + view.name + " is in two files");
    files.push_back(std::move(file));
  }
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  EVP_DigestInit_ex(context, EVP_sha256(), nullptr);
  std::vector<float> wide;
  for (const auto& [name, view] : tensors) {
    EVP_DigestUpdate(context, name.data(), name.size());
    if (view.dtype != "BF16" && view.dtype != "F16") {
      EVP_DigestUpdate(context, view.data, size_t(view.size_bytes));
      continue;
    }
    wide.resize(size_t(view.count()));
    for (int64_t i = 0; i < view.count(); ++i) wide[size_t(i)] = widen(view, i);
    EVP_DigestUpdate(context, wide.data(), wide.size() * sizeof(float));
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(context, digest, &size);
  EVP_MD_CTX_free(context);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) {
    char pair[3];
    std::snprintf(pair, sizeof pair, "%02x", digest[i]);
    hex += pair;
  }
  return hex;
}

}  // namespace tessera
