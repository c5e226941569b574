// Zip files as torch.save writes them, and damaged ones, made in memory.
#pragma once

#include <unistd.h>
#include <zlib.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace tessera::test {

template <typename T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// method 0 stores; crc_flip damages the checksum of every record.
inline std::string zip_of(const std::vector<std::pair<std::string, std::string>>& records, uint16_t method = 0, uint32_t crc_flip = 0) {
  std::string out, directory;
  for (const auto& [short_name, data] : records) {
    const std::string name = "archive/" + short_name;
    const uint32_t crc = uint32_t(crc32(0, reinterpret_cast<const Bytef*>(data.data()), uInt(data.size()))) ^ crc_flip, size = uint32_t(data.size());
    std::string common;
    put<uint16_t>(common, 0), put<uint16_t>(common, method), put<uint32_t>(common, 0), put(common, crc), put(common, size), put(common, size);
    put(common, uint16_t(name.size())), put<uint16_t>(common, 0);
    const auto local = uint32_t(out.size());
    put<uint32_t>(out, 0x04034b50), put<uint16_t>(out, 20);
    out += common + name + data;
    put<uint32_t>(directory, 0x02014b50), put<uint16_t>(directory, 20), put<uint16_t>(directory, 20);
    directory += common;
    put<uint16_t>(directory, 0), put<uint16_t>(directory, 0), put<uint16_t>(directory, 0), put<uint32_t>(directory, 0), put(directory, local);
    directory += name;
  }
  const auto start = uint32_t(out.size());
  out += directory;
  put<uint32_t>(out, 0x06054b50), put<uint32_t>(out, 0);
  put(out, uint16_t(records.size())), put(out, uint16_t(records.size()));
  put(out, uint32_t(directory.size())), put(out, start), put<uint16_t>(out, 0);
  return out;
}

// A temporary file with these bytes.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& bytes) {
    const char* folder = std::getenv("TMPDIR");
    path_ = std::string(folder ? folder : "/tmp") + "/tessera-test-XXXXXX";
    const int file = mkstemp(path_.data());
    size_t done = 0;
    while (file >= 0 && done < bytes.size()) {
      const ssize_t wrote = write(file, bytes.data() + done, bytes.size() - done);
      if (wrote <= 0) break;
      done += size_t(wrote);
    }
    if (file >= 0) close(file);
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class SmallArchive : public TemporaryFile {
 public:
  explicit SmallArchive(const std::vector<std::pair<std::string, std::string>>& records) : TemporaryFile(zip_of(records)) {}
};

}  // namespace tessera::test
