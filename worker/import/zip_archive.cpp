#include "worker/import/zip_archive.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace tessera::import {
namespace {

constexpr uint32_t kEntry = 0x02014b50, kLocal = 0x04034b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr int64_t kEndBytes = 22, kLocatorBytes = 20, kEnd64Bytes = 56, kEntryBytes = 46, kLocalBytes = 30;
constexpr int64_t kMaxDirectoryBytes = int64_t{256} << 20, kReadBytes = int64_t{8} << 20;

template <typename T>
T get(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Sizes and offset of one entry, from its fixed part or, where that says 0xFFFFFFFF, from the zip64 extra field.
struct Places {
  uint64_t size = 0, stored = 0, local = 0;
};
bool widen(Places& p, const uint8_t* extra, size_t bytes) {
  if (p.size != 0xFFFFFFFFu && p.stored != 0xFFFFFFFFu && p.local != 0xFFFFFFFFu) return true;
  while (bytes >= 4) {
    const size_t field = get<uint16_t>(extra + 2);
    if (field > bytes - 4) return false;
    if (get<uint16_t>(extra) == 1) {
      const uint8_t *at = extra + 4, *end = at + field;
      for (uint64_t* value : {&p.size, &p.stored, &p.local}) {
        if (*value != 0xFFFFFFFFu) continue;
        if (end - at < 8) return false;
        *value = get<uint64_t>(at);
        at += 8;
      }
      return true;
    }
    extra += 4 + field;
    bytes -= 4 + field;
  }
  return false;
}

}  // namespace

tl::unexpected<Error> ZipArchive::bad(const std::string& what) const { return fail(ErrorCode::kFixData, "[import] " + path_ + ": " + what); }

ZipArchive::ZipArchive(ZipArchive&& other) noexcept
    : path_(std::move(other.path_)), file_(other.file_), file_bytes_(other.file_bytes_), records_(std::move(other.records_)) {
  other.file_ = -1;
}

ZipArchive::~ZipArchive() {
  if (file_ >= 0) close(file_);
}

Result<ZipArchive> ZipArchive::open(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return fail(ErrorCode::kIo, "[import] cannot open " + path + ": " + std::strerror(errno));
  ZipArchive archive(path, file);
  struct stat info {};
  if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) return fail(ErrorCode::kIo, "[import] " + path + " is no file");
  archive.file_bytes_ = info.st_size;
  TESSERA_TRY(archive.read_directory());
  return archive;
}

Status ZipArchive::pread_all(int64_t offset, int64_t bytes, void* out) const {
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = pread(file_, to, size_t(std::min(bytes, kReadBytes)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fail(ErrorCode::kIo, "[import] cannot read " + path_ + " at byte " + std::to_string(offset) + ": " + (got < 0 ? std::strerror(errno) : "it ends there"));
    to += got, offset += got, bytes -= got;
  }
  return {};
}

Status ZipArchive::read_directory() {
  uint8_t magic[4] = {};
  if (file_bytes_ >= 4) TESSERA_TRY(pread_all(0, 4, magic));
  if (magic[0] == 0x80 && magic[1] == 0x02)
    return bad("is in torch.save's format before version 1.6; load and save it once with a newer PyTorch (torch.save(torch.load(f), g))");
  if (file_bytes_ < kEndBytes || get<uint32_t>(magic) != kLocal) return bad("is no zip file as torch.save writes it");
  const int64_t tail = std::min<int64_t>(file_bytes_, kEndBytes + kLocatorBytes + 65535);
  std::vector<uint8_t> end(static_cast<size_t>(tail));
  TESSERA_TRY(pread_all(file_bytes_ - tail, tail, end.data()));
  int64_t at = tail - kEndBytes;
  while (at >= 0 && !(get<uint32_t>(&end[size_t(at)]) == kEnd && at + kEndBytes + get<uint16_t>(&end[size_t(at) + 20]) == tail)) --at;
  if (at < 0) return bad("has no zip directory at its end: it is truncated, download it again (" + std::to_string(file_bytes_) + " bytes are here)");
  int64_t count = get<uint16_t>(&end[size_t(at) + 10]);
  int64_t bytes = get<uint32_t>(&end[size_t(at) + 12]), start = get<uint32_t>(&end[size_t(at) + 16]), limit = file_bytes_ - tail + at;
  if (at >= kLocatorBytes && get<uint32_t>(&end[size_t(at - kLocatorBytes)]) == kLocator64) {
    const int64_t place = get<int64_t>(&end[size_t(at - kLocatorBytes) + 8]);
    uint8_t wide[kEnd64Bytes];
    if (place < 0 || place > limit - kLocatorBytes - kEnd64Bytes) return bad("zip64 directory at byte " + std::to_string(place) + " lies outside the file");
    TESSERA_TRY(pread_all(place, kEnd64Bytes, wide));
    if (get<uint32_t>(wide) != kEnd64) return bad("byte " + std::to_string(place) + " does not hold the zip64 directory that the end of the file names");
    count = get<int64_t>(wide + 32), bytes = get<int64_t>(wide + 40), start = get<int64_t>(wide + 48), limit = place;
  }
  if (start < 0 || bytes < 0 || start > limit || bytes > limit - start || bytes > kMaxDirectoryBytes)
    return bad("zip directory of " + std::to_string(bytes) + " bytes at byte " + std::to_string(start) + " lies outside the file");
  return add_entries(start, bytes, count);
}

Status ZipArchive::add_entries(int64_t start, int64_t bytes, int64_t count) {
  std::vector<uint8_t> directory(static_cast<size_t>(bytes));
  TESSERA_TRY(pread_all(start, bytes, directory.data()));
  int64_t at = 0;
  std::string root;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* entry = directory.data() + at;
    const std::string where = "zip directory entry " + std::to_string(i) + " ";
    if (bytes - at < kEntryBytes || get<uint32_t>(entry) != kEntry) return bad(where + "at byte " + std::to_string(start + at) + " is damaged");
    const int64_t name_bytes = get<uint16_t>(entry + 28), extra_bytes = get<uint16_t>(entry + 30), comment_bytes = get<uint16_t>(entry + 32);
    if (name_bytes + extra_bytes + comment_bytes > bytes - at - kEntryBytes) return bad(where + "runs past the directory");
    std::string name(reinterpret_cast<const char*>(entry + kEntryBytes), size_t(name_bytes));
    Places p{get<uint32_t>(entry + 24), get<uint32_t>(entry + 20), get<uint32_t>(entry + 42)};
    if (!widen(p, entry + kEntryBytes + name_bytes, size_t(extra_bytes))) return bad(where + name + ": zip64 field is damaged");
    if (get<uint16_t>(entry + 8) & 1) return bad(where + name + " is encrypted");
    if (get<uint16_t>(entry + 10) != 0 || p.size != p.stored) return bad(where + name + " is compressed; torch.save stores records as they are");
    if (p.local > uint64_t(start) || uint64_t(start) - p.local < uint64_t(kLocalBytes)) return bad(where + name + " lies outside the file");
    uint8_t local[kLocalBytes];
    TESSERA_TRY(pread_all(int64_t(p.local), kLocalBytes, local));
    const uint64_t data = p.local + kLocalBytes + get<uint16_t>(local + 26) + get<uint16_t>(local + 28);
    if (get<uint32_t>(local) != kLocal || data > uint64_t(start) || p.size > uint64_t(start) - data) return bad(where + name + " lies outside the file");
    const size_t slash = name.find('/');
    if (i == 0) root = slash == std::string::npos ? "" : name.substr(0, slash + 1);
    if (!name.starts_with(root)) return bad(where + name + " is outside the archive's folder " + root);
    if (!records_.emplace(name.substr(root.size()), ZipRecord{int64_t(data), int64_t(p.size), get<uint32_t>(entry + 16)}).second)
      return bad(where + name + " is there twice");
    at += kEntryBytes + name_bytes + extra_bytes + comment_bytes;
  }
  if (at != bytes) return bad("zip directory is longer than its entries");
  return {};
}

const ZipRecord* ZipArchive::find(const std::string& name) const {
  const auto it = records_.find(name);
  return it == records_.end() ? nullptr : &it->second;
}

Status ZipArchive::read(const std::string& name, void* out) const {
  const ZipRecord* record = find(name);
  if (!record) return bad("record " + name + " is missing");
  uLong crc = crc32_z(0, nullptr, 0);
  for (int64_t done = 0; done < record->size_bytes; done += kReadBytes) {
    const int64_t piece = std::min(kReadBytes, record->size_bytes - done);
    uint8_t* to = static_cast<uint8_t*>(out) + done;
    TESSERA_TRY(pread_all(record->offset + done, piece, to));
    crc = crc32_z(crc, to, size_t(piece));
  }
  if (uint32_t(crc) != record->crc) return bad("record " + name + " at byte " + std::to_string(record->offset) + " is damaged: its checksum differs; download the file again");
  return {};
}

}  // namespace tessera::import
