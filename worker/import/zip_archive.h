// Strict reader of the zip files that torch.save writes: stored (never compressed) records, zip64, every offset checked
// against the file, every record read checked against its CRC. Reads with pread, so no page of the file stays mapped.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::import {

struct ZipRecord {
  int64_t offset = 0;  // of the first data byte
  int64_t size_bytes = 0;
  uint32_t crc = 0;
};

class ZipArchive {
 public:
  // Errors: kIo; kFixData naming file and what is wrong: no zip (an old-format torch.save file gets its own sentence),
  // truncated, compressed, encrypted, entries that overlap the directory, duplicate names.
  static Result<ZipArchive> open(const std::string& path);
  ~ZipArchive();
  ZipArchive(ZipArchive&& other) noexcept;
  ZipArchive& operator=(ZipArchive&&) = delete;

  // Names without the folder that torch.save puts first ("archive/data.pkl" is "data.pkl").
  const std::map<std::string, ZipRecord>& records() const { return records_; }
  const ZipRecord* find(const std::string& name) const;
  // Whole record into out (size_bytes bytes). Errors: kIo; kFixData when the CRC differs.
  Status read(const std::string& name, void* out) const;
  const std::string& path() const { return path_; }
  int64_t file_bytes() const { return file_bytes_; }

 private:
  ZipArchive(std::string path, int file) : path_(std::move(path)), file_(file) {}
  Status read_directory();
  Status add_entries(int64_t start, int64_t bytes, int64_t count);
  Status pread_all(int64_t offset, int64_t bytes, void* out) const;
  tl::unexpected<Error> bad(const std::string& what) const;

  std::string path_;
  int file_ = -1;
  int64_t file_bytes_ = 0;
  std::map<std::string, ZipRecord> records_;
};

}  // namespace tessera::import
