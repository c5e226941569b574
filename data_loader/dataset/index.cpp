#include "data_loader/dataset/index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <unordered_map>

#include "data_loader/dataset/labels.h"
#include "data_loader/dataset/parallel.h"
#include "data_loader/dataset/repack.h"
#include "data_loader/dataset/tar.h"
#include "data_loader/decode/packed_jpeg.h"

namespace tessera::data {
namespace {

struct Indexed {
  std::string key;
  Hash128 hash;
  int64_t offset = 0, size = 0;
  uint32_t file = 0;
  SampleLabels labels;
  Codec codec = Codec::kOriginal;
  Hash128 stored_hash;
};
struct Part {  // of one shard, or of one run of images
  std::vector<Indexed> samples;
  std::vector<BadSample> bad;
};

std::span<const uint8_t> as_bytes(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

Status check_image_size(const std::string& where, int64_t size) {
  if (size <= kMaxImageBytes) return {};
  return fail(ErrorCode::kFixData, "[data_loader] " + where + " holds an image of " + std::to_string(size) + " bytes; at most " + std::to_string(kMaxImageBytes) + " are accepted: remove it");
}

// ---- tar shards ----

struct PendingKey {
  std::optional<Indexed> image;
  std::string image_extension;
  bool has_class = false, has_json = false;
  SampleLabels labels;
  int64_t first_byte = 0;
};

// One shard: members are gathered by key; a sample stands where its image does.
class ShardIndexer {
 public:
  ShardIndexer(const RandomAccessFile& file, uint32_t file_index) : file_(file), file_index_(file_index) {}

  Result<Part> run() {
    TarReader reader(file_);
    for (;;) {
      TESSERA_ASSIGN(const std::optional<TarMember> member, reader.next());
      if (!member) break;
      std::string key, extension;
      if (!split_member_name(member->name, &key, &extension)) continue;
      if (is_image_extension(extension) || extension == kPackedExtension) TESSERA_TRY(add_image(*member, key, extension));
      else if (extension == "cls" || extension == "json") TESSERA_TRY(add_labels(*member, key, extension));
    }
    Part part;
    for (const std::string& key : order_) {
      PendingKey& pending = keys_.at(key);
      pending.image->labels = std::move(pending.labels);
      part.samples.push_back(std::move(*pending.image));
    }
    for (const auto& [key, pending] : keys_)
      if (!pending.image) part.bad.push_back({key, "shard " + file_.path() + " has labels for this key (byte " + std::to_string(pending.first_byte) + ") but no .jpg, .jpeg or .png"});
    part.bad.insert(part.bad.end(), bad_.begin(), bad_.end());
    return part;
  }

 private:
  std::string where(const TarMember& member) const { return "shard " + file_.path() + ": member '" + member.name + "' at byte " + std::to_string(member.header_byte); }
  tl::unexpected<Error> twice(const TarMember& member, const std::string& key, const std::string& other) const {
    return fail(ErrorCode::kFixData, "[data_loader] " + where(member) + ": key '" + key + "' has a second " + other + "; keys must be unique: re-pack the shard");
  }
  PendingKey& pending(const std::string& key, const TarMember& member) {
    const auto [it, fresh] = keys_.try_emplace(key);
    if (fresh) it->second.first_byte = member.header_byte;
    return it->second;
  }
  Status add_image(const TarMember& member, const std::string& key, const std::string& extension) {
    TESSERA_TRY(check_image_size(where(member), member.size));
    PendingKey& entry = pending(key, member);
    if (entry.image) return twice(member, key, "image (" + entry.image_extension + " and " + extension + ")");
    TESSERA_ASSIGN(const std::string content, file_.read(member.offset, member.size));
    const Hash128 stored_hash = hash_bytes(content);
    Indexed image{key, stored_hash, member.offset, member.size, file_index_, {}, Codec::kOriginal, stored_hash};
    if (extension == kPackedExtension) {
      const auto original = unpack_jpeg(as_bytes(content));
      if (!original) return fail(ErrorCode::kFixData, "[data_loader] " + where(member) + " cannot be unpacked: " + original.error().message + "; repack the shard from the originals");
      image.codec = Codec::kPackedJpeg, image.hash = hash_bytes(*original);
    } else if (const std::string defect = image_defect(as_bytes(content)); !defect.empty()) {
      bad_.push_back({key, where(member) + " " + defect});
    }
    entry.image = std::move(image);
    entry.image_extension = extension;
    order_.push_back(key);
    return {};
  }
  Status add_labels(const TarMember& member, const std::string& key, const std::string& extension) {
    constexpr int64_t kMaxLabelBytes = 1 << 20;
    PendingKey& entry = pending(key, member);
    bool& seen = extension == "cls" ? entry.has_class : entry.has_json;
    if (seen) return twice(member, key, "." + extension);
    seen = true;
    if (member.size > kMaxLabelBytes) return fail(ErrorCode::kFixData, "[data_loader] " + where(member) + " holds " + std::to_string(member.size) + " bytes of labels; at most 1 MiB is accepted");
    TESSERA_ASSIGN(const std::string content, file_.read(member.offset, member.size));
    const auto misread = [&](const Error& error) { return fail(ErrorCode::kFixData, "[data_loader] " + where(member) + " " + error.message + "; correct it or leave the member out"); };
    if (extension == "cls") {
      const auto value = parse_class(content);
      if (!value) return misread(value.error());
      entry.labels.values[kClassLabel] = *value;
    } else if (const Status parsed = parse_json_labels(content, &entry.labels); !parsed) {
      return misread(parsed.error());
    }
    return {};
  }

  const RandomAccessFile& file_;
  uint32_t file_index_;
  std::map<std::string, PendingKey> keys_;
  std::vector<std::string> order_;
  std::vector<BadSample> bad_;
};

Result<std::vector<Part>> index_tars(const Source& source, int threads, const std::shared_ptr<ObjectStore>& store) {
  std::vector<uint32_t> shards;
  for (uint32_t i = 0; i < source.files.size(); ++i)
    if (source.files[i].role == FileRole::kShard) shards.push_back(i);
  std::vector<Part> parts(shards.size());
  TESSERA_TRY(parallel_for(int64_t(shards.size()), threads, [&](int64_t i) -> Status {
    TESSERA_ASSIGN(const RandomAccessFile file, RandomAccessFile::open(source.base + "/" + source.files[shards[size_t(i)]].path, store));
    TESSERA_ASSIGN(parts[size_t(i)], ShardIndexer(file, shards[size_t(i)]).run());
    return {};
  }));
  return parts;
}

// ---- folders ----

Result<std::string> read_whole(const Source& source, uint32_t file, const std::shared_ptr<ObjectStore>& store = nullptr) {
  TESSERA_ASSIGN(const RandomAccessFile opened, RandomAccessFile::open(source.base + "/" + source.files[file].path, store));
  TESSERA_TRY(check_image_size("file " + opened.path(), opened.size()));
  return opened.read(0, opened.size());
}

Status add_sidecar(const Source& source, uint32_t file, Indexed* sample) {
  const std::string& path = source.files[file].path;
  TESSERA_ASSIGN(const std::string content, read_whole(source, file));
  const auto misread = [&](const Error& error) { return fail(ErrorCode::kFixData, "[data_loader] file " + source.base + "/" + path + " " + error.message + "; correct it or remove it"); };
  if (path.ends_with(".json")) {
    if (const Status parsed = parse_json_labels(content, &sample->labels); !parsed) return misread(parsed.error());
    return {};
  }
  const auto value = parse_class(content);
  if (!value) return misread(value.error());
  sample->labels.values[kClassLabel] = *value;
  return {};
}

Result<std::vector<Part>> index_folder(const Source& source, int threads) {
  std::vector<uint32_t> images;
  std::unordered_map<std::string, uint32_t> by_path;
  for (uint32_t i = 0; i < source.files.size(); ++i) {
    if (source.files[i].role == FileRole::kImage) images.push_back(i);
    if (source.files[i].role == FileRole::kSidecar) by_path.emplace(source.files[i].path, i);
  }
  constexpr size_t kRun = 256;
  std::vector<Part> parts((images.size() + kRun - 1) / kRun);
  TESSERA_TRY(parallel_for(int64_t(parts.size()), threads, [&](int64_t p) -> Status {
    for (size_t i = size_t(p) * kRun; i < std::min(images.size(), (size_t(p) + 1) * kRun); ++i) {
      const std::string& path = source.files[images[i]].path;
      TESSERA_ASSIGN(const std::string content, read_whole(source, images[i]));
      Indexed sample{path.substr(0, path.rfind('.')), hash_bytes(content), 0, int64_t(content.size()), images[i], {}, Codec::kOriginal, hash_bytes(content)};
      if (const std::string defect = image_defect(as_bytes(content)); !defect.empty()) parts[size_t(p)].bad.push_back({sample.key, "file " + source.base + "/" + path + " " + defect});
      for (const char* extension : {".cls", ".json"})  // the class of .cls wins, so it comes first
        if (const auto sidecar = by_path.find(sample.key + extension); sidecar != by_path.end()) TESSERA_TRY(add_sidecar(source, sidecar->second, &sample));
      parts[size_t(p)].samples.push_back(std::move(sample));
    }
    return {};
  }));
  return parts;
}

// ---- both ----

// Samples without a class of their own take their top folder's; returns the folders' names where that happened.
std::vector<std::string> classes_from_folders(std::vector<Indexed>* samples) {
  std::set<std::string> names;
  const auto folder = [](const Indexed& sample) { return sample.key.substr(0, sample.key.find('/')); };
  const auto applies = [](const Indexed& sample) { return !sample.labels.has_class() && sample.key.find('/') != std::string::npos; };
  for (const Indexed& sample : *samples)
    if (applies(sample)) names.insert(folder(sample));
  for (Indexed& sample : *samples)
    if (applies(sample)) sample.labels.values[kClassLabel] = double(std::distance(names.begin(), names.find(folder(sample))));
  return {names.begin(), names.end()};
}

Result<std::vector<std::string>> class_names(const Source& source, const std::vector<Indexed>& samples, std::vector<std::string> from_folders, const std::shared_ptr<ObjectStore>& store) {
  for (uint32_t i = 0; i < source.files.size(); ++i)
    if (source.files[i].path == "classes.txt") {
      TESSERA_ASSIGN(const std::string text, read_whole(source, i, store));
      return parse_class_names(text);
    }
  std::map<int64_t, std::string> named;
  for (const Indexed& sample : samples)
    if (!sample.labels.class_name.empty() && sample.labels.has_class()) named.try_emplace(int64_t(sample.labels.values.at(kClassLabel)), sample.labels.class_name);
  if (named.empty() || named.begin()->first < 0 || named.rbegin()->first > 1'000'000) return from_folders;
  std::vector<std::string> out(size_t(named.rbegin()->first) + 1);
  for (const auto& [index, name] : named) out[size_t(index)] = name;
  return out;
}

Status check_unique(const Source& source, const std::vector<Indexed>& samples) {
  std::unordered_map<std::string_view, size_t> seen;
  seen.reserve(samples.size());
  for (size_t i = 0; i < samples.size(); ++i) {
    const auto [it, fresh] = seen.try_emplace(samples[i].key, i);
    if (fresh) continue;
    const auto place = [&](const Indexed& sample) { return source.files[sample.file].path + " (byte " + std::to_string(sample.offset) + ")"; };
    return fail(ErrorCode::kFixData, "[data_loader] key '" + samples[i].key + "' occurs twice below " + source.base + ": in " + place(samples[it->second]) + " and " + place(samples[i]) + "; keys must be unique: rename or remove one");
  }
  return {};
}

}  // namespace

std::string image_defect(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return "is empty";
  constexpr uint8_t kPng[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
  if (bytes.size() > 8 && std::memcmp(bytes.data(), kPng, 8) == 0) {
    constexpr uint8_t kEnd[8] = {'I', 'E', 'N', 'D', 0xAE, 0x42, 0x60, 0x82};
    return std::search(bytes.begin() + 8, bytes.end(), std::begin(kEnd), std::end(kEnd)) == bytes.end() ? "ends without the PNG end chunk: it was cut" : "";
  }
  if (bytes.size() > 4 && bytes[0] == 0xFF && bytes[1] == 0xD8 && bytes[2] == 0xFF) {
    for (size_t i = bytes.size() - 1; i-- > 2;)
      if (bytes[i] == 0xFF && bytes[i + 1] == 0xD9) return "";
    return "ends without the JPEG end marker: it was cut";
  }
  return "is neither JPEG nor PNG";
}

Result<ManifestDraft> index_source(const Source& source, int threads, const std::shared_ptr<ObjectStore>& store) {
  const bool tars = source.kind == "tar";
  TESSERA_ASSIGN(std::vector<Part> parts, tars ? index_tars(source, threads, store) : index_folder(source, threads));
  ManifestDraft draft;
  draft.kind = source.kind, draft.source = source.source, draft.files = source.files;
  std::vector<Indexed> samples;
  for (Part& part : parts) {
    if (tars && !part.samples.empty()) draft.block_starts.push_back(int64_t(samples.size()));
    std::move(part.samples.begin(), part.samples.end(), std::back_inserter(samples));
    draft.bad.insert(draft.bad.end(), part.bad.begin(), part.bad.end());
  }
  if (samples.empty()) return fail(ErrorCode::kFixData, "[data_loader] " + source.source + " holds no image that belongs to a key; expected key.jpg, key.jpeg or key.png in its shards");
  for (int64_t first = 0; !tars && first < int64_t(samples.size()); first += kFolderBlock) draft.block_starts.push_back(first);
  TESSERA_TRY(check_unique(source, samples));
  TESSERA_ASSIGN(draft.class_names, class_names(source, samples, classes_from_folders(&samples), store));
  std::vector<const SampleLabels*> labels;
  for (const Indexed& sample : samples) labels.push_back(&sample.labels);
  TESSERA_ASSIGN(draft.label_names, label_columns(labels));
  draft.samples.reserve(samples.size());
  for (Indexed& sample : samples) {
    std::vector<double> row;
    for (const std::string& name : draft.label_names) {
      const auto value = sample.labels.values.find(name);
      row.push_back(value == sample.labels.values.end() ? std::numeric_limits<double>::quiet_NaN() : value->second);
    }
    draft.samples.push_back({std::move(sample.key), sample.hash, {sample.offset, sample.size, sample.file, sample.codec, sample.stored_hash}, std::move(row)});
  }
  return draft;
}

}  // namespace tessera::data
