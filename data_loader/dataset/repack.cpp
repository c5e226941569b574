#include "data_loader/dataset/repack.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <unistd.h>

#include "common/file.h"
#include "data_loader/dataset/parallel.h"
#include "data_loader/dataset/source.h"
#include "data_loader/dataset/tar.h"
#include "data_loader/decode/packed_jpeg.h"

namespace tessera::data {
namespace {

namespace fs = std::filesystem;
constexpr const char* kMarker = "/.repack-of";  // holds the digest of the dataset

std::span<const uint8_t> as_bytes(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

std::string shard_name(int64_t shard) {
  char name[40];
  std::snprintf(name, sizeof name, "shard-%06lld.tar", static_cast<long long>(shard));
  return name;
}

// The labels of a sample as its key.json; empty: it has none.
std::string labels_json(const Manifest& manifest, SampleId id) {
  nlohmann::json out = nlohmann::json::object();
  const auto labels = manifest.labels(id);
  for (size_t l = 0; l < labels.size(); ++l) {
    if (std::isnan(labels[l])) continue;
    const bool whole = std::fabs(labels[l]) < 1e15 && labels[l] == std::floor(labels[l]);
    if (whole) out[manifest.label_names()[l]] = int64_t(labels[l]);
    else out[manifest.label_names()[l]] = labels[l];
  }
  return out.empty() ? "" : out.dump();
}

const char* extension_of(const std::string& image) {
  if (is_packed_jpeg(as_bytes(image))) return kPackedExtension;
  return image.size() > 1 && image[0] == '\x89' && image[1] == 'P' ? "png" : "jpg";
}

// A sample as it goes into its shard: tar members, and where the image lies in them.
struct Part {
  std::string members;
  StoredSample stored;  // offset from the beginning of members
  int64_t original_bytes = 0;
};

Result<Part> make_part(const Manifest& manifest, SampleReader& reader, SampleId id) {
  TESSERA_ASSIGN(std::string stored, reader.read(id));
  auto image = original_image(manifest.stored(id), std::move(stored));
  if (!image) return fail(image.error().code, "[data_loader] " + reader.where(id) + ": " + image.error().message);
  if (hash_bytes(*image) != manifest.content_hash(id)) return fail(ErrorCode::kFixData, "[data_loader] " + reader.where(id) + " unpacks to another image than the manifest has; restore the shard");
  Part part;
  part.original_bytes = int64_t(image->size());
  if (auto packed = pack_jpeg(as_bytes(*image))) *image = std::move(*packed), part.stored.codec = Codec::kPackedJpeg;
  const std::string key(manifest.key(id));
  part.stored.offset = int64_t(append_tar_member(&part.members, key + "." + extension_of(*image), *image));
  part.stored.size = int64_t(image->size());
  part.stored.stored_hash = hash_bytes(*image);
  if (const std::string labels = labels_json(manifest, id); !labels.empty()) append_tar_member(&part.members, key + ".json", labels);
  return part;
}

// A file that is written front to back under another name and gets its own when it is on disk.
class ShardFile {
 public:
  explicit ShardFile(std::string path) : path_(std::move(path)), file_(std::fopen((path_ + ".part").c_str(), "wb")) {}
  ~ShardFile() {
    if (file_) std::fclose(file_);
  }
  ShardFile(const ShardFile&) = delete;
  ShardFile& operator=(const ShardFile&) = delete;
  int64_t size() const { return size_; }
  std::string part_path() const { return path_ + ".part"; }
  Status append(const std::string& bytes) {
    if (!file_ || std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) return refused();
    size_ += int64_t(bytes.size());
    return {};
  }
  Status close() {
    std::string end;
    finish_tar(&end);
    TESSERA_TRY(append(end));
    if (std::fflush(file_) != 0 || ::fsync(::fileno(file_)) != 0) return refused();
    const int closed = std::fclose(std::exchange(file_, nullptr));
    return closed == 0 ? Status{} : Status{refused()};
  }
  Status give_name() const { return std::rename(part_path().c_str(), path_.c_str()) == 0 ? Status{} : Status{refused()}; }

 private:
  tl::unexpected<Error> refused() const { return fail(ErrorCode::kIo, "[data_loader] writing " + part_path() + ": " + std::strerror(errno)); }
  std::string path_;
  std::FILE* file_;
  int64_t size_ = 0;
};

class Repacking {
 public:
  Repacking(std::shared_ptr<const Dataset> dataset, const RepackOptions& options)
      : dataset_(std::move(dataset)), manifest_(*dataset_->manifest), threads_(options.threads), out_(fs::absolute(options.out).lexically_normal().string()) {
    while (out_.size() > 1 && out_.ends_with('/')) out_.pop_back();
    work_ = out_ + ".repacking";
    stored_.resize(size_t(manifest_.sample_count()));
  }

  Result<Repacked> run() {
    TESSERA_TRY(prepare());
    const auto blocks = manifest_.block_starts();
    for (size_t b = 0; b < blocks.size(); ++b) {
      const SampleId first = blocks[b], end = b + 1 < blocks.size() ? blocks[b + 1] : manifest_.sample_count();
      const std::string path = work_ + "/" + shard_name(int64_t(b));
      if (is_complete(path, first, end)) ++result_.shards_resumed;
      else TESSERA_TRY(write_shard(path, first, end));
      ++result_.shards;
    }
    TESSERA_TRY(write_manifest());
    if (std::rename(work_.c_str(), out_.c_str()) != 0) return fail(ErrorCode::kIo, "[data_loader] renaming " + work_ + " to " + out_ + ": " + std::strerror(errno));
    ::unlink((out_ + kMarker).c_str());
    TESSERA_TRY(fsync_folder(fs::path(out_).parent_path().string()));
    for (SampleId id = 0; id < manifest_.sample_count(); ++id) ++(stored_[size_t(id)].codec == Codec::kPackedJpeg ? result_.packed : result_.kept), result_.stored_bytes += stored_[size_t(id)].size;
    result_.original_bytes = original_bytes_;
    result_.manifest_path = out_ + "/.tessera-manifest";
    return result_;
  }

 private:
  Status prepare() {
    std::error_code error;
    if (fs::exists(out_, error) && !(fs::is_directory(out_, error) && fs::is_empty(out_, error)))
      return fail(ErrorCode::kUsage, "[data_loader] " + out_ + " is there and not empty; name a new folder for the repacked shards");
    if (manifest_.block_starts().size() > 1'000'000) return fail(ErrorCode::kUsage, "[data_loader] more than a million shards; join some first");
    const std::string digest = to_hex(manifest_.digest());
    if (fs::exists(work_, error)) {
      const auto marker = read_file(work_ + kMarker);
      if (!marker || *marker != digest) return fail(ErrorCode::kUsage, "[data_loader] " + work_ + " is not an interrupted repack of this dataset (manifest_digest " + digest + "); remove it or name another folder");
      return {};
    }
    TESSERA_TRY(make_folders(work_));
    return write_file_atomic(work_ + kMarker, digest);
  }

  // Whether a shard of an earlier call holds these samples; fills stored_ if so.
  bool is_complete(const std::string& path, SampleId first, SampleId end) {
    const auto file = RandomAccessFile::open(path);
    if (!file) return false;
    TarReader reader(*file);
    SampleId id = first;
    int64_t original = 0;
    for (;;) {
      const auto member = reader.next();
      if (!member) return false;
      if (!*member) break;
      const std::string& name = (*member)->name;
      const std::string extension = name.substr(name.rfind('.') + 1);
      if (extension == "json") continue;
      if (id == end || name != std::string(manifest_.key(id)) + "." + extension) return false;
      const auto content = file->read((*member)->offset, (*member)->size);
      if (!content) return false;
      StoredSample& stored = stored_[size_t(id)];
      stored = {(*member)->offset, (*member)->size, 0, extension == kPackedExtension ? Codec::kPackedJpeg : Codec::kOriginal, hash_bytes(*content)};
      const auto image = original_image(stored, *content);
      if (!image || hash_bytes(*image) != manifest_.content_hash(id)) return false;
      original += int64_t(image->size());
      ++id;
    }
    if (id == end) original_bytes_ += original;
    return id == end;
  }

  // In pieces, so that memory stays bounded whatever the shard's size.
  Status write_shard(const std::string& path, SampleId first, SampleId end) {
    ShardFile shard(path);
    constexpr int64_t kPiece = 64;
    for (SampleId begin = first; begin < end; begin += kPiece) {
      std::vector<Part> parts(size_t(std::min(kPiece, end - begin)));
      const int64_t lanes = std::min<int64_t>(threads_, int64_t(parts.size()));
      TESSERA_TRY(parallel_for(lanes, threads_, [&](int64_t lane) -> Status {
        SampleReader reader(dataset_);
        for (size_t i = size_t(lane); i < parts.size(); i += size_t(lanes)) {
          TESSERA_ASSIGN(parts[i], make_part(manifest_, reader, begin + SampleId(i)));
        }
        return {};
      }));
      for (size_t i = 0; i < parts.size(); ++i) {
        StoredSample& stored = stored_[size_t(begin) + i];
        stored = parts[i].stored;
        stored.offset += shard.size();
        original_bytes_ += parts[i].original_bytes;
        TESSERA_TRY(shard.append(parts[i].members));
      }
    }
    TESSERA_TRY(shard.close());
    TESSERA_ASSIGN(const RandomAccessFile written, RandomAccessFile::open(shard.part_path()));
    for (SampleId id = first; id < end; ++id) {
      const StoredSample& stored = stored_[size_t(id)];
      TESSERA_ASSIGN(const std::string content, written.read(stored.offset, stored.size));
      if (hash_bytes(content) != stored.stored_hash) return fail(ErrorCode::kIo, "[data_loader] " + shard.part_path() + ": key '" + std::string(manifest_.key(id)) + "' at byte " + std::to_string(stored.offset) + " reads back differently; check the disk");
    }
    return shard.give_name();
  }

  Status write_manifest() {
    std::string names;
    for (const std::string& name : manifest_.class_names()) names += name + "\n";
    if (!names.empty()) TESSERA_TRY(write_file_atomic(work_ + "/classes.txt", names));
    TESSERA_ASSIGN(const Source source, find_source(work_));
    ManifestDraft draft;
    draft.kind = source.kind, draft.source = out_, draft.files = source.files;
    draft.label_names = manifest_.label_names(), draft.class_names = manifest_.class_names();
    draft.block_starts.assign(manifest_.block_starts().begin(), manifest_.block_starts().end());
    draft.bad = manifest_.bad();
    draft.samples.reserve(stored_.size());
    size_t block = 0;
    for (SampleId id = 0; id < manifest_.sample_count(); ++id) {
      while (block + 1 < draft.block_starts.size() && draft.block_starts[block + 1] <= id) ++block;
      stored_[size_t(id)].file = uint32_t(block);  // shards come first among the files, in the order of their names
      const auto labels = manifest_.labels(id);
      draft.samples.push_back({std::string(manifest_.key(id)), manifest_.content_hash(id), stored_[size_t(id)], {labels.begin(), labels.end()}});
    }
    if (manifest_digest(draft) != manifest_.digest()) return fail(ErrorCode::kInternal, "[data_loader] the repacked dataset has another manifest_digest");
    return write_file_atomic(work_ + "/.tessera-manifest", encode_manifest(draft));
  }

  std::shared_ptr<const Dataset> dataset_;
  const Manifest& manifest_;
  int threads_;
  std::string out_, work_;
  std::vector<StoredSample> stored_;
  int64_t original_bytes_ = 0;
  Repacked result_;
};

}  // namespace

Result<std::string> original_image(const StoredSample& how, std::string stored) {
  if (how.codec == Codec::kOriginal) return stored;
  return unpack_jpeg(as_bytes(stored));
}

Result<Repacked> repack(const std::shared_ptr<const Dataset>& dataset, const RepackOptions& options) { return Repacking(dataset, options).run(); }

}  // namespace tessera::data
