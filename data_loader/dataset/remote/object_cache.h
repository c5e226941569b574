// Blocks of remote objects on the local disk, bounded. Several loaders may share the folder.
//
// A block is a file named by the object's identity (its URL, size and ETag) and its number, its bytes followed by their
// XXH3-128, written beside and renamed: a reader sees all of it or nothing. A process checks a block's hash when it first
// reads it. The least recently used go first: when what this process has written since it last looked passes a thirty-second
// of the limit, it adds up the folder and removes files, oldest first, down to fifteen sixteenths. So the limit holds for
// up to two loaders that write at once, and is passed by a thirty-second of it for each further one.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>

#include "common/hash.h"
#include "common/result.h"

namespace tessera::data {

class ObjectCache {
 public:
  // Makes the folder. Error: kIo (it cannot be made or written).
  static Result<std::shared_ptr<ObjectCache>> open(const std::string& folder, int64_t most_bytes);

  // Bytes [offset, offset + count) of a block of `block_bytes`; nullopt when it is not there or damaged (it is removed).
  std::optional<std::string> read(const Hash128& object, int64_t block, int64_t block_bytes, int64_t offset, int64_t count);
  // Keeps a whole block. A disk that is full or fails costs the block, nothing else.
  void put(const Hash128& object, int64_t block, std::string_view bytes);
  void drop(const Hash128& object, int64_t block);

  // Of all blocks in the folder now. Looks at every file.
  int64_t bytes_on_disk() const;
  const std::string& folder() const { return folder_; }

 private:
  ObjectCache(std::string folder, int64_t most_bytes) : folder_(std::move(folder)), most_bytes_(most_bytes) {}
  std::string path_of(const Hash128& object, int64_t block) const;
  void make_room();

  const std::string folder_;
  const int64_t most_bytes_;
  std::mutex mutex_;
  int64_t written_since_ = 0;                     // that the folder was last added up
  bool looked_ = false;
  std::unordered_set<std::string> checked_;       // blocks whose hash this process has seen to be right
};

}  // namespace tessera::data
