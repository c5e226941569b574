#include "data_loader/dataset/random_access_file.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tessera::data {

Result<RandomAccessFile> RandomAccessFile::open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return fail(ErrorCode::kFixData, "[data_loader] cannot open " + path + ": " + std::strerror(errno));
  struct stat info{};
  if (::fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(descriptor);
    return fail(ErrorCode::kFixData, "[data_loader] " + path + " is not a regular file");
  }
  const int64_t modified_ns = int64_t(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec;
  return RandomAccessFile(path, descriptor, info.st_size, modified_ns);
}

RandomAccessFile::~RandomAccessFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status RandomAccessFile::read(int64_t offset, void* to, int64_t count) const {
  char* out = static_cast<char*>(to);
  int64_t done = 0;
  while (done < count) {
    const ssize_t got = ::pread(descriptor_, out + done, size_t(count - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(ErrorCode::kIo, "[data_loader] reading " + path_ + " at byte " + std::to_string(offset + done) + ": " + std::strerror(errno));
    if (got == 0)
      return fail(ErrorCode::kFixData, "[data_loader] " + path_ + " ends at byte " + std::to_string(offset + done) + ", " + std::to_string(count - done) + " bytes too early; restore the file and index it again");
    done += got;
  }
  return {};
}

Result<std::string> RandomAccessFile::read(int64_t offset, int64_t count) const {
  std::string out(size_t(count), '\0');
  TESSERA_TRY(read(offset, out.data(), count));
  return out;
}

}  // namespace tessera::data
