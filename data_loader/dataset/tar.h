// Tar archives as WebDataset shards use them: a strict reader that gives offsets, and a writer.
//
// Read: POSIX ustar, pax (path, size) and GNU (long names, base-256 sizes). Refused, with shard, member and byte in the
// sentence: bad checksums, sizes beyond the file, links, devices, sparse files, absolute names, "..", a missing
// end-of-archive mark. Source: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual,
// "Basic Tar Format".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"
#include "data_loader/dataset/random_access_file.h"

namespace tessera::data {

struct TarMember {
  std::string name;         // without a leading "./"
  int64_t header_byte = 0;  // of its ustar header
  int64_t offset = 0;       // of its content
  int64_t size = 0;
};

// Walks over the regular files of an archive, in order. Folders are passed over.
class TarReader {
 public:
  // The file must outlive the reader.
  explicit TarReader(const RandomAccessFile& file) : file_(file) {}
  // nullopt at the end-of-archive mark. Errors: kFixData, kIo.
  Result<std::optional<TarMember>> next();

 private:
  struct Header;
  struct Overrides {  // from pax and GNU extension headers, for the next member
    std::optional<std::string> path;
    std::optional<int64_t> size;
  };
  Result<bool> at_end();
  Status read_extension(const Header& header, Overrides* overrides);
  Result<TarMember> member(const Header& header, Overrides overrides) const;
  tl::unexpected<Error> bad(int64_t byte, const std::string& what) const;

  const RandomAccessFile& file_;
  int64_t position_ = 0;
};

// Appends a regular file (mode 0644, owner 0, time 0): equal content gives equal bytes. A name of over 100 bytes gets a
// pax header. Returns where in the archive the content begins.
size_t append_tar_member(std::string* archive, std::string_view name, std::string_view content);
// Appends the end-of-archive mark.
void finish_tar(std::string* archive);

}  // namespace tessera::data
