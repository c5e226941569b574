#include "data_loader/dataset/manifest.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tessera::data {
namespace {

static_assert(std::endian::native == std::endian::little, "manifests are used in place");
static_assert(sizeof(StoredSample) == 40 && sizeof(FileEntry) == 32 && sizeof(Hash128) == 16);

constexpr char kMagic[8] = {'T', 'S', 'R', 'M', 'A', 'N', 'I', '1'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 128, kAlignment = 64, kHashedFrom = 32;

struct Header {
  char magic[8];
  uint32_t version, zero;
  Hash128 file_hash, digest;
  uint64_t samples, labels, blocks, files, key_bytes, path_bytes, text_bytes;
};
static_assert(sizeof(Header) == 104);

uint64_t label_bits(double value) { return std::isnan(value) ? 0x7FF8000000000000ull : std::bit_cast<uint64_t>(value == 0 ? 0.0 : value); }

void append_section(std::string* out, const void* data, size_t size_bytes) {
  out->resize((out->size() + kAlignment - 1) / kAlignment * kAlignment, '\0');
  out->append(static_cast<const char*>(data), size_bytes);
}
template <typename T>
void append_section(std::string* out, const std::vector<T>& items) {
  append_section(out, items.data(), items.size() * sizeof(T));
}

std::string describe(const ManifestDraft& draft) {
  nlohmann::json text{{"label_names", draft.label_names}, {"class_names", draft.class_names}, {"source", draft.source}, {"kind", draft.kind}, {"bad", nlohmann::json::array()}};
  for (const BadSample& bad : draft.bad) text["bad"].push_back({{"key", bad.key}, {"reason", bad.reason}});
  return text.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Takes sections off a mapped file, each inside it or none.
struct Sections {
  const char* data;
  size_t size, at = kHeaderBytes;
  bool fits = true;
  template <typename T>
  std::span<const T> take(uint64_t count) {
    at = (at + kAlignment - 1) / kAlignment * kAlignment;
    fits = fits && at <= size && count <= (size - at) / sizeof(T);
    if (!fits) return {};
    const std::span<const T> out(reinterpret_cast<const T*>(data + at), size_t(count));
    at += size_t(count) * sizeof(T);
    return out;
  }
};

bool ascending(std::span<const uint64_t> ends, uint64_t last) {
  uint64_t before = 0;
  for (const uint64_t end : ends) {
    if (end < before) return false;
    before = end;
  }
  return before == last;
}

}  // namespace

Hash128 manifest_digest(const ManifestDraft& draft) {
  Hasher hasher;
  hasher.add_string("tessera-manifest-1");
  hasher.add_u64(draft.label_names.size());
  for (const std::string& name : draft.label_names) hasher.add_string(name);
  hasher.add_u64(draft.samples.size());
  for (const auto& sample : draft.samples) {
    hasher.add_string(sample.key);
    for (const double value : sample.labels) hasher.add_u64(label_bits(value));
    hasher.add_hash(sample.content_hash);
  }
  hasher.add_u64(draft.block_starts.size());
  for (const int64_t start : draft.block_starts) hasher.add_i64(start);
  return hasher.finish();
}

std::string encode_manifest(const ManifestDraft& draft) {
  const size_t n = draft.samples.size();
  std::string keys, paths;
  std::vector<uint64_t> key_ends;
  std::vector<Hash128> hashes;
  std::vector<StoredSample> stored;
  std::vector<double> labels;
  std::vector<FileEntry> files;
  key_ends.reserve(n), hashes.reserve(n), stored.reserve(n), labels.reserve(n * draft.label_names.size());
  for (const auto& sample : draft.samples) {
    TESSERA_CHECK(sample.labels.size() == draft.label_names.size());
    keys += sample.key;
    key_ends.push_back(keys.size());
    hashes.push_back(sample.content_hash);
    stored.push_back(sample.stored);
    for (const double value : sample.labels) labels.push_back(std::bit_cast<double>(label_bits(value)));
  }
  for (const auto& file : draft.files) {
    paths += file.path;
    files.push_back({file.size, file.modified_ns, paths.size(), file.role, 0});
  }
  const std::string text = describe(draft);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.digest = manifest_digest(draft);
  header.samples = n, header.labels = draft.label_names.size(), header.blocks = draft.block_starts.size(), header.files = files.size();
  header.key_bytes = keys.size(), header.path_bytes = paths.size(), header.text_bytes = text.size();
  std::string out(kHeaderBytes, '\0');
  append_section(&out, key_ends);
  append_section(&out, keys.data(), keys.size());
  append_section(&out, hashes);
  append_section(&out, stored);
  append_section(&out, labels);
  append_section(&out, draft.block_starts);
  append_section(&out, files);
  append_section(&out, paths.data(), paths.size());
  append_section(&out, text.data(), text.size());
  std::memcpy(out.data(), &header, sizeof header);
  header.file_hash = hash_bytes(out.data() + kHashedFrom, out.size() - kHashedFrom);
  std::memcpy(out.data(), &header, sizeof header);
  return out;
}

Manifest::~Manifest() {
  if (mapping_) ::munmap(mapping_, mapping_size_);
}

Result<std::shared_ptr<const Manifest>> Manifest::load(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return fail(ErrorCode::kIo, "[data_loader] cannot open manifest " + path + ": " + std::strerror(errno));
  struct stat info{};
  ::fstat(descriptor, &info);
  std::shared_ptr<Manifest> out(new Manifest());
  if (info.st_size >= int64_t(kHeaderBytes)) {
    void* mapping = ::mmap(nullptr, size_t(info.st_size), PROT_READ, MAP_PRIVATE | MAP_POPULATE, descriptor, 0);
    if (mapping != MAP_FAILED) out->mapping_ = mapping, out->mapping_size_ = size_t(info.st_size);
  }
  ::close(descriptor);
  if (!out->mapping_) return fail(ErrorCode::kFixData, "[data_loader] manifest " + path + " of " + std::to_string(info.st_size) + " bytes is cut; run tessera data index again");
  TESSERA_TRY(out->parse(path));
  return std::shared_ptr<const Manifest>(std::move(out));
}

Status Manifest::parse(const std::string& path) {
  const auto damaged = [&](const std::string& what) { return fail(ErrorCode::kFixData, "[data_loader] manifest " + path + " " + what + "; run tessera data index again"); };
  const char* data = static_cast<const char*>(mapping_);
  Header header;
  std::memcpy(&header, data, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return damaged("is no manifest");
  if (header.version != kVersion) return damaged("has format version " + std::to_string(header.version) + ", this build reads " + std::to_string(kVersion));
  if (hash_bytes(data + kHashedFrom, mapping_size_ - kHashedFrom) != header.file_hash) return damaged("is damaged (its hash differs)");
  digest_ = header.digest;
  Sections sections{data, mapping_size_};
  key_ends_ = sections.take<uint64_t>(header.samples);
  const auto keys = sections.take<char>(header.key_bytes);
  hashes_ = sections.take<Hash128>(header.samples);
  stored_ = sections.take<StoredSample>(header.samples);
  sections.fits = sections.fits && header.labels <= 4096;
  labels_ = sections.take<double>(sections.fits ? header.samples * header.labels : 0);
  blocks_ = sections.take<int64_t>(header.blocks);
  files_ = sections.take<FileEntry>(header.files);
  const auto paths = sections.take<char>(header.path_bytes);
  const auto text = sections.take<char>(header.text_bytes);
  if (!sections.fits || sections.at != mapping_size_) return damaged("has sections that do not fit its size");
  keys_ = {keys.data(), keys.size()}, paths_ = {paths.data(), paths.size()};
  bool sound = ascending(key_ends_, header.key_bytes);
  uint64_t path_end = 0;
  for (const FileEntry& file : files_) sound = sound && file.path_end >= path_end, path_end = file.path_end;
  sound = sound && path_end == header.path_bytes;
  for (const StoredSample& sample : stored_) sound = sound && sample.file < header.files && sample.offset >= 0 && sample.size >= 0 && sample.codec <= Codec::kPackedJpeg;
  for (size_t i = 0; i < blocks_.size(); ++i) sound = sound && (i == 0 ? blocks_[0] == 0 : blocks_[i] > blocks_[i - 1]) && blocks_[i] < int64_t(header.samples);
  if (!sound || blocks_.empty()) return damaged("has tables that do not fit together");
  TESSERA_TRY(parse_text({text.data(), text.size()}, path));
  if (label_names_.size() != header.labels) return damaged("names other labels than it holds");
  return {};
}

Status Manifest::parse_text(std::string_view text, const std::string& path) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto fails = [&] { return fail(ErrorCode::kFixData, "[data_loader] manifest " + path + " has an unreadable description; run tessera data index again"); };
  if (!json.is_object()) return fails();
  const auto strings = [&](const char* name, std::vector<std::string>* out) {
    if (!json.contains(name) || !json[name].is_array()) return false;
    for (const auto& item : json[name]) {
      if (!item.is_string()) return false;
      out->push_back(item.get<std::string>());
    }
    return true;
  };
  if (!strings("label_names", &label_names_) || !strings("class_names", &class_names_) || !json.contains("bad") || !json["bad"].is_array()) return fails();
  for (const auto& entry : json["bad"]) {
    if (!entry.is_object()) return fails();
    bad_.push_back({entry.value("key", ""), entry.value("reason", "")});
  }
  kind_ = json.value("kind", ""), source_ = json.value("source", "");
  return {};
}

std::string_view Manifest::key(SampleId id) const {
  const uint64_t begin = id == 0 ? 0 : key_ends_[size_t(id) - 1];
  return keys_.substr(size_t(begin), size_t(key_ends_[size_t(id)] - begin));
}

std::string_view Manifest::file_path(uint32_t file) const {
  const uint64_t begin = file == 0 ? 0 : files_[file - 1].path_end;
  return paths_.substr(size_t(begin), size_t(files_[file].path_end - begin));
}

int64_t Manifest::total_bytes() const {
  int64_t sum = 0;
  for (const StoredSample& sample : stored_) sum += sample.size;
  return sum;
}

int64_t Manifest::packed_count() const {
  return std::count_if(stored_.begin(), stored_.end(), [](const StoredSample& sample) { return sample.codec == Codec::kPackedJpeg; });
}

int64_t Manifest::shard_count() const { return int64_t(blocks_.size()); }

}  // namespace tessera::data
