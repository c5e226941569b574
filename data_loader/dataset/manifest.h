// The manifest: what a dataset is (keys, labels, content hashes, blocks) and where its bytes lie.
//
// manifest_digest covers, per sample in order, key, labels and XXH3-128 of the original encoded bytes, the names of the
// labels, and the block table. Where and how a sample is stored lies outside it: a moved or repacked dataset is the same
// dataset (DESIGN.md section 6, "Dataset identity").
//
// File, little-endian, mapped and used in place; sections start on 64 bytes:
//   0    "TSRMANI1"                        8    u32 version (1), u32 zero
//   16   XXH3-128 of bytes [32, end)       32   manifest_digest (high, low)
//   48   u64 samples, labels, blocks, files, key bytes, path bytes, text bytes
//   104  zero up to 128, then the sections:
//   key_ends u64[samples] | keys | content hashes (high, low)[samples] | StoredSample[samples] | labels f64[samples][labels]
//   | block starts i64[blocks] | FileEntry[files] | paths | text: JSON {label_names, class_names, source, kind, bad}
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/hash.h"
#include "common/ids.h"
#include "common/result.h"

namespace tessera::data {

enum class Codec : uint32_t {
  kOriginal = 0,    // the encoded image as it came
  kPackedJpeg = 1,  // decode/packed_jpeg.h; the content hash is that of the JPEG it was made of
};

struct StoredSample {
  int64_t offset = 0;  // in its file
  int64_t size = 0;    // as stored
  uint32_t file = 0;   // index into files()
  Codec codec = Codec::kOriginal;
  Hash128 stored_hash;  // of the stored bytes; equal to the content hash for kOriginal
};

enum class FileRole : uint32_t {
  kShard = 0,     // a tar
  kImage = 1,     // one sample
  kSidecar = 2,   // labels beside an image (.cls, .json), classes.txt
  kFolder = 3,    // a folder that was listed; its time changes when a name in it does
};

struct FileEntry {
  int64_t size = 0;  // of the listing's hash for the root folder (whose own time changes with the manifest in it)
  int64_t modified_ns = 0;
  uint64_t path_end = 0;
  FileRole role = FileRole::kShard;
  uint32_t zero = 0;
};

struct BadSample {
  std::string key;
  std::string reason;
};

// A manifest as the indexer makes it.
struct ManifestDraft {
  struct Sample {
    std::string key;
    Hash128 content_hash;
    StoredSample stored;
    std::vector<double> labels;  // one per label name, NaN where missing
  };
  struct File {
    std::string path;  // relative to the dataset's folder
    int64_t size = 0;
    int64_t modified_ns = 0;
    FileRole role = FileRole::kShard;
  };
  std::string kind;    // "folder" | "tar"
  std::string source;  // what was indexed: the folder, file or pattern
  std::vector<std::string> label_names;
  std::vector<std::string> class_names;
  std::vector<Sample> samples;
  std::vector<int64_t> block_starts;  // first sample of each block, from 0, ascending
  std::vector<File> files;
  std::vector<BadSample> bad;  // samples that are in the manifest but look undecodable, and members that are in none
};

Hash128 manifest_digest(const ManifestDraft& draft);
// The bytes of the file. Pure: equal drafts give equal bytes.
std::string encode_manifest(const ManifestDraft& draft);

// A manifest file, mapped read-only. Immutable; any number of threads may read it. Spans and views live as long as it.
class Manifest {
 public:
  // Errors: kIo (cannot be read); kFixData (cut, damaged, another version): index the dataset again.
  static Result<std::shared_ptr<const Manifest>> load(const std::string& path);
  ~Manifest();
  Manifest(const Manifest&) = delete;
  Manifest& operator=(const Manifest&) = delete;

  const Hash128& digest() const { return digest_; }
  int64_t sample_count() const { return int64_t(hashes_.size()); }
  int64_t total_bytes() const;   // of the images as stored
  int64_t packed_count() const;  // samples that are stored as packed JPEGs
  std::string_view key(SampleId id) const;
  const Hash128& content_hash(SampleId id) const { return hashes_[size_t(id)]; }
  const StoredSample& stored(SampleId id) const { return stored_[size_t(id)]; }
  // One per label name; NaN where the sample has none.
  std::span<const double> labels(SampleId id) const { return labels_.subspan(size_t(id) * label_names_.size(), label_names_.size()); }
  std::span<const int64_t> block_starts() const { return blocks_; }
  std::span<const FileEntry> files() const { return files_; }
  std::string_view file_path(uint32_t file) const;
  int64_t shard_count() const;  // tars, or blocks of a folder

  const std::string& kind() const { return kind_; }
  const std::string& source() const { return source_; }
  const std::vector<std::string>& label_names() const { return label_names_; }
  const std::vector<std::string>& class_names() const { return class_names_; }
  const std::vector<BadSample>& bad() const { return bad_; }

 private:
  Manifest() = default;
  Status parse(const std::string& path);
  Status parse_text(std::string_view text, const std::string& path);

  void* mapping_ = nullptr;
  size_t mapping_size_ = 0;
  Hash128 digest_;
  std::span<const uint64_t> key_ends_;
  std::string_view keys_, paths_;
  std::span<const Hash128> hashes_;
  std::span<const StoredSample> stored_;
  std::span<const double> labels_;
  std::span<const int64_t> blocks_;
  std::span<const FileEntry> files_;
  std::string kind_, source_;
  std::vector<std::string> label_names_, class_names_;
  std::vector<BadSample> bad_;
};

}  // namespace tessera::data
