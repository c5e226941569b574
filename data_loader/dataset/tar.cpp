#include "data_loader/dataset/tar.h"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace tessera::data {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kMaxExtensionBytes = 1 << 20;

struct RawHeader {
  char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100], magic[8], owner[32], group[32], device_major[8], device_minor[8], prefix[155], padding[12];
};
static_assert(sizeof(RawHeader) == kBlock);

std::string field(const char* text, size_t limit) { return {text, strnlen(text, limit)}; }

// Octal digits, or GNU's base-256 when the top bit is set. nullopt: neither, negative, or above 2^63 - 1.
std::optional<int64_t> number(const char* text, size_t size) {
  if (static_cast<unsigned char>(text[0]) & 0x80) {
    if (static_cast<unsigned char>(text[0]) != 0x80) return std::nullopt;
    uint64_t value = 0;
    for (size_t i = 1; i < size; ++i) {
      if (value >> 55) return std::nullopt;
      value = value << 8 | static_cast<unsigned char>(text[i]);
    }
    return int64_t(value);
  }
  size_t i = 0;
  while (i < size && text[i] == ' ') ++i;
  int64_t value = 0;
  bool any = false;
  for (; i < size && text[i] >= '0' && text[i] <= '7'; ++i) value = value * 8 + (text[i] - '0'), any = true;
  for (; i < size; ++i)
    if (text[i] != ' ' && text[i] != '\0') return std::nullopt;
  return any ? std::optional(value) : std::nullopt;
}

int64_t checksum(const RawHeader& header) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  constexpr size_t first = offsetof(RawHeader, checksum), last = first + sizeof header.checksum;
  int64_t sum = 0;
  for (size_t i = 0; i < sizeof header; ++i) sum += i >= first && i < last ? ' ' : bytes[i];
  return sum;
}

int64_t padded(int64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

bool has_parent_step(std::string_view name) {
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return true;
    begin = end + 1;
  }
  return false;
}

// One "length key=value\n" record; advances text. False when malformed.
bool pax_record(std::string_view* text, std::string_view* key, std::string_view* value) {
  size_t length = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), length);
  const size_t digits = size_t(end - text->data());
  if (error != std::errc{} || length <= digits + 2 || length > text->size() || *end != ' ' || (*text)[length - 1] != '\n') return false;
  const std::string_view body = text->substr(digits + 1, length - digits - 2);
  const size_t equals = body.find('=');
  if (equals == std::string_view::npos) return false;
  *key = body.substr(0, equals), *value = body.substr(equals + 1);
  text->remove_prefix(length);
  return true;
}

}  // namespace

struct TarReader::Header : RawHeader {
  int64_t byte = 0, content_size = 0;
};

tl::unexpected<Error> TarReader::bad(int64_t byte, const std::string& what) const {
  return fail(ErrorCode::kFixData, "[data_loader] shard " + file_.path() + ": the header at byte " + std::to_string(byte) + " " + what);
}

// Two zero blocks (or one that the file ends with) close an archive.
Result<bool> TarReader::at_end() {
  if (position_ + kBlock > file_.size())
    return bad(position_, "is missing: the file ends without the end-of-archive mark, so it was cut; restore the shard");
  const auto zero = [&](int64_t at) -> Result<bool> {
    TESSERA_ASSIGN(const std::string block, file_.read(at, kBlock));
    return std::all_of(block.begin(), block.end(), [](char c) { return c == 0; });
  };
  TESSERA_ASSIGN(const bool first, zero(position_));
  if (!first) return false;
  if (position_ + 2 * kBlock > file_.size()) return true;
  TESSERA_ASSIGN(const bool second, zero(position_ + kBlock));
  if (!second) return bad(position_, "is a lone block of zeros with data behind it; re-pack the shard");
  return true;
}

Status TarReader::read_extension(const Header& header, Overrides* overrides) {
  if (header.content_size > kMaxExtensionBytes) return bad(header.byte, "announces an extension of " + std::to_string(header.content_size) + " bytes; at most 1 MiB is accepted");
  TESSERA_ASSIGN(const std::string content, file_.read(header.byte + kBlock, header.content_size));
  if (header.type == 'L') {
    overrides->path = content.substr(0, content.find('\0'));
    return {};
  }
  std::string_view rest = content, key, value;
  while (!rest.empty()) {
    if (!pax_record(&rest, &key, &value)) return bad(header.byte, "is a pax header that cannot be read; re-pack the shard");
    if (header.type == 'g' && (key == "path" || key == "size")) return bad(header.byte, "sets the " + std::string(key) + " of all members; re-pack the shard");
    if (header.type == 'x' && key == "path") overrides->path = std::string(value);
    if (header.type == 'x' && key == "size") {
      int64_t size = -1;
      const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), size);
      if (error != std::errc{} || end != value.data() + value.size() || size < 0) return bad(header.byte, "is a pax header whose size '" + std::string(value) + "' is no number; re-pack the shard");
      overrides->size = size;
    }
    if (key.starts_with("GNU.sparse")) return bad(header.byte, "belongs to a sparse file; re-pack the shard without --sparse");
  }
  return {};
}

Result<TarMember> TarReader::member(const Header& header, Overrides overrides) const {
  std::string name = field(header.name, sizeof header.name);
  const bool posix = std::memcmp(header.magic, "ustar\0", 6) == 0;
  if (posix && header.prefix[0] != 0) name = field(header.prefix, sizeof header.prefix) + "/" + name;
  if (overrides.path) name = *overrides.path;
  while (name.starts_with("./")) name.erase(0, 2);
  const std::string says = "(member '" + name + "') ";
  if (name.find('\0') != std::string::npos) return bad(header.byte, says + "has a name with a zero byte; re-pack the shard");
  if (name.starts_with("/")) return bad(header.byte, says + "has an absolute name; re-pack the shard with relative names");
  if (has_parent_step(name)) return bad(header.byte, says + "leaves its folder by '..'; re-pack the shard");
  switch (header.type) {
    case '0': case '\0': case '7': case '5': break;
    case '1': case '2': case 'K': return bad(header.byte, says + "is a link; re-pack the shard with tar --dereference --hard-dereference");
    case 'S': return bad(header.byte, says + "is a sparse file; re-pack the shard without --sparse");
    default: return bad(header.byte, says + "has type '" + std::string(1, header.type) + "', which is no regular file; re-pack the shard");
  }
  if (name.empty() && header.type != '5') return bad(header.byte, "has no name; re-pack the shard");
  TarMember out{name, header.byte, header.byte + kBlock, overrides.size.value_or(header.content_size)};
  if (out.size > file_.size() - out.offset)
    return bad(header.byte, says + "announces " + std::to_string(out.size) + " bytes, but the file ends after " + std::to_string(file_.size() - out.offset) + "; the shard was cut or damaged: restore it");
  return out;
}

Result<std::optional<TarMember>> TarReader::next() {
  Overrides overrides;
  for (;;) {
    TESSERA_ASSIGN(const bool end, at_end());
    if (end) return std::nullopt;
    Header header;
    header.byte = position_;
    TESSERA_TRY(file_.read(position_, static_cast<RawHeader*>(&header), kBlock));
    if (std::memcmp(header.magic, "ustar", 5) != 0) return bad(position_, "is no ustar header; the file is no tar archive or is damaged");
    const auto wanted = number(header.checksum, sizeof header.checksum);
    if (!wanted || *wanted != checksum(header)) return bad(position_, "has a wrong checksum; the shard is damaged: restore it");
    const auto size = number(header.size, sizeof header.size);
    if (!size) return bad(position_, "has no readable size; the shard is damaged: restore it");
    header.content_size = *size;
    if (*size > file_.size() - position_ - kBlock && !overrides.size)
      return bad(position_, "(member '" + field(header.name, sizeof header.name) + "') announces " + std::to_string(*size) + " bytes, but the file ends after " + std::to_string(file_.size() - position_ - kBlock) + "; the shard was cut or damaged: restore it");
    if (header.type == 'x' || header.type == 'g' || header.type == 'L') {
      TESSERA_TRY(read_extension(header, &overrides));
      position_ += kBlock + padded(*size);
      continue;
    }
    TESSERA_ASSIGN(TarMember out, member(header, overrides));
    position_ = out.offset + padded(header.type == '5' ? 0 : out.size);
    if (header.type != '5') return std::optional(std::move(out));
    overrides = {};
  }
}

namespace {

size_t append_member(std::string* archive, std::string_view name, std::string_view content, char type) {
  RawHeader header{};
  std::memcpy(header.name, name.data(), std::min(name.size(), sizeof header.name));
  const auto octal = [](char* to, size_t digits, int64_t value) {
    for (size_t i = digits; i-- > 0; value /= 8) to[i] = char('0' + value % 8);
  };
  octal(header.mode, 7, 0644), octal(header.uid, 7, 0), octal(header.gid, 7, 0);
  octal(header.size, 11, int64_t(content.size())), octal(header.mtime, 11, 0);
  header.type = type;
  std::memcpy(header.magic, "ustar\00000", 8);
  octal(header.checksum, 6, checksum(header));
  header.checksum[7] = ' ';
  archive->append(reinterpret_cast<const char*>(&header), sizeof header);
  const size_t begin = archive->size();
  archive->append(content);
  archive->append(size_t(padded(int64_t(content.size())) - int64_t(content.size())), '\0');
  return begin;
}

}  // namespace

size_t append_tar_member(std::string* archive, std::string_view name, std::string_view content) {
  if (name.size() > sizeof(RawHeader::name)) {
    const std::string record = " path=" + std::string(name) + "\n";
    size_t length = record.size() + 1;  // which counts its own digits
    while (std::to_string(length).size() + record.size() != length) ++length;
    append_member(archive, "pax", std::to_string(length) + record, 'x');
  }
  return append_member(archive, name, content, '0');
}

void finish_tar(std::string* archive) { archive->append(size_t(2 * kBlock), '\0'); }

}  // namespace tessera::data
