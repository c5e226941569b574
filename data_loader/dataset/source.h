// Where a dataset's files are: what operation.data_path means.
//
//   a folder with .tar files in it      WebDataset shards, in bytewise order of their names
//   a .tar file, or a glob of them      the same
//   http(s)://, s3://                remote tar shards: see remote/remote_source.h
//   any other folder                    images (jpg, jpeg, png, any case), with subfolders or none
//
// Names that begin with a dot are passed over. Symbolic links are followed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "data_loader/dataset/manifest.h"

namespace tessera::data {

class ObjectStore;

struct Source {
  std::string kind;    // "folder" | "tar"
  std::string base;    // absolute folder that file paths are relative to
  std::string source;  // absolute path or pattern: the source's identity on this machine
  std::vector<ManifestDraft::File> files;  // shards or images and sidecars, then folders; each bytewise by path
};

// Lists the files; remote ones through the store, which may be null for local ones. Errors: kFixData (nothing there, no
// images, no permission), with the path as given; kIo (the server does not answer).
Result<Source> find_source(const std::string& data_path, ObjectStore* store = nullptr);

// The folder and identity of a data path without listing it. Errors as above.
struct SourcePlace {
  std::string base, source;
  bool whole_folder = false;  // the path is a folder
};
Result<SourcePlace> place_source(const std::string& data_path);

// Why a manifest no longer fits the files, as a sentence; empty when it does. Compares sizes and times of shards, and of
// images where they are few (kStatLimit); for many images only the folders, whose times change when a name is added or
// removed. An image overwritten in place behind that is refused by its hash when it is read. Remote shards: sizes and ETags.
inline constexpr size_t kStatLimit = 50'000;
std::string why_stale(const Manifest& manifest, const SourcePlace& place, ObjectStore* store = nullptr);

// Splits "a/b/key.ext" by WebDataset's rule: the key runs up to the first dot of the last part. False for names without
// key or extension. The extension comes in lower case.
bool split_member_name(std::string_view name, std::string* key, std::string* extension);
bool is_image_extension(std::string_view extension);

}  // namespace tessera::data
