#include "data_loader/dataset/random_access_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data_loader/dataset/remote/object_store.h"
#include "data_loader/dataset/remote/url.h"

namespace tessera::data {

// Reading from front to back keeps a window of whole blocks in memory; reading here and there keeps nothing.
struct RandomAccessFile::Remote {
  std::shared_ptr<ObjectStore> store;
  RemoteObject object;
  int64_t last_block = -2;
  int64_t window_begin = 0;
  std::string window;
};

RandomAccessFile::RandomAccessFile() = default;
RandomAccessFile::RandomAccessFile(RandomAccessFile&& other) noexcept : RandomAccessFile() { *this = std::move(other); }

Result<RandomAccessFile> RandomAccessFile::open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return fail(ErrorCode::kFixData, "[data_loader] cannot open " + path + ": " + std::strerror(errno));
  RandomAccessFile out;
  out.path_ = path, out.descriptor_ = descriptor;
  struct stat info{};
  if (::fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) return fail(ErrorCode::kFixData, "[data_loader] " + path + " is not a regular file");
  out.modified_ns_ = int64_t(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec;
  out.size_ = info.st_size;
  return out;
}

Result<RandomAccessFile> RandomAccessFile::open(const std::string& path, const std::shared_ptr<ObjectStore>& store) {
  if (!is_remote_path(path)) return open(path);
  TESSERA_CHECK(store != nullptr, "no store for " + path);
  TESSERA_ASSIGN(RemoteObject object, store->object(path));
  RandomAccessFile out;
  out.path_ = printable_url(path), out.size_ = object.size, out.modified_ns_ = object.version();
  out.remote_ = std::make_unique<Remote>(Remote{store, std::move(object), -2, 0, {}});
  return out;
}

RandomAccessFile::~RandomAccessFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

RandomAccessFile& RandomAccessFile::operator=(RandomAccessFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(remote_, other.remote_);
  size_ = other.size_, modified_ns_ = other.modified_ns_;
  return *this;
}

Status RandomAccessFile::read(int64_t offset, void* to, int64_t count) const {
  if (remote_) return read_remote(offset, to, count);
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

Status RandomAccessFile::read_remote(int64_t offset, void* to, int64_t count) const {
  constexpr int64_t kBlock = ObjectStore::kBlockBytes;
  Remote& r = *remote_;
  if (count == 0) return {};
  if (offset + count > size_)
    return fail(ErrorCode::kFixData, "[data_loader] " + path_ + " ends at byte " + std::to_string(size_) + ", " + std::to_string(offset + count - size_) + " bytes too early; restore the object and index it again");
  const int64_t block = offset / kBlock;
  const bool onwards = block == r.last_block || block == r.last_block + 1 || (r.last_block < 0 && block == 0);
  r.last_block = (offset + count - 1) / kBlock;
  const auto window_end = [&] { return r.window_begin + int64_t(r.window.size()); };
  if (!onwards || count > kBlock * ObjectStore::kReadAhead) {
    r.window = {};
    TESSERA_ASSIGN(const std::string bytes, r.store->read(r.object, offset, count));
    std::memcpy(to, bytes.data(), size_t(count));
    return {};
  }
  for (int64_t done = 0; done < count;) {
    const int64_t at = offset + done;
    if (at < r.window_begin || at >= window_end()) {
      TESSERA_ASSIGN(r.window, r.store->blocks(r.object, at / kBlock, ObjectStore::kReadAhead));
      r.window_begin = at / kBlock * kBlock;
    }
    const int64_t part = std::min(count - done, window_end() - at);
    std::memcpy(static_cast<char*>(to) + done, r.window.data() + (at - r.window_begin), size_t(part));
    done += part;
  }
  return {};
}

void RandomAccessFile::forget_cached(int64_t offset, int64_t count) const {
  if (!remote_) return;
  remote_->window = {};
  remote_->store->forget(remote_->object, offset, count);
}

}  // namespace tessera::data
