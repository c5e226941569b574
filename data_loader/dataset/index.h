// Indexing: reads every file of a dataset once and makes its manifest. Deterministic: the same files give the same
// manifest_digest whatever the threads, the folder's place and the file system's order.
#pragma once

#include <span>
#include <string>

#include "common/result.h"
#include "data_loader/dataset/manifest.h"
#include "data_loader/dataset/source.h"

namespace tessera::data {

// Samples of a folder are grouped into blocks of this many ("shards" of `shuffle: block`); of tars, a block is a shard.
inline constexpr int64_t kFolderBlock = 1024;
inline constexpr int64_t kMaxImageBytes = int64_t{256} << 20;

// Sample order: shards by name and members by position; images of a folder by relative path. A sample's class is its
// .cls, else "class" in its .json, else the place of its top subfolder's name among all of them.
// Errors: kFixData with file, key and byte: a damaged tar, a key that occurs twice, labels that cannot be read, an image
// above kMaxImageBytes, a packed JPEG (.tsj, see repack.h) that cannot be unpacked; kIo. Images that look undecodable (wrong signature, cut) stay samples and are listed in bad: what
// becomes of them is decided by function.data.undecodable.
// store: of a remote source; null for a local one.
Result<ManifestDraft> index_source(const Source& source, int threads, const std::shared_ptr<ObjectStore>& store = nullptr);

// What is plainly wrong with an encoded image, from its first and last bytes only: "is empty", "is neither JPEG nor PNG",
// "ends without the JPEG end marker: the file was cut". Empty when nothing is.
std::string image_defect(std::span<const uint8_t> bytes);

}  // namespace tessera::data
