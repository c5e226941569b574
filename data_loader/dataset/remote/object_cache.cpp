#include "data_loader/dataset/remote/object_cache.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

#include "common/file.h"
#include "common/log.h"

namespace tessera::data {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kHashBytes = sizeof(Hash128);
constexpr const char* kSuffix = ".block";

struct Descriptor {
  int number = -1;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

bool read_at(int descriptor, int64_t offset, std::string* to) {
  for (size_t done = 0; done < to->size();) {
    const ssize_t got = ::pread(descriptor, to->data() + done, to->size() - done, offset + int64_t(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += size_t(got);
  }
  return true;
}

struct Entry {
  std::string path;
  int64_t size = 0;
  int64_t used_ns = 0;
};

// Files of others that vanish meanwhile are passed over.
std::vector<Entry> list(const std::string& folder) {
  std::vector<Entry> out;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    struct stat info{};
    const std::string path = it->path().string();
    const bool is_block = path.ends_with(kSuffix), left_over = path.find(".block.tmp") != std::string::npos;
    if ((!is_block && !left_over) || ::stat(path.c_str(), &info) != 0) continue;
    out.push_back({path, info.st_size, int64_t(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec});
  }
  return out;
}

int64_t sum_of(const std::vector<Entry>& entries) {
  int64_t sum = 0;
  for (const Entry& entry : entries) sum += entry.size;
  return sum;
}

}  // namespace

Result<std::shared_ptr<ObjectCache>> ObjectCache::open(const std::string& folder, int64_t most_bytes) {
  TESSERA_TRY(make_folders(folder));
  if (::access(folder.c_str(), W_OK) != 0) return fail(ErrorCode::kIo, "[data_loader] cannot write to " + folder + ": " + std::strerror(errno) + "; set operation.remote.cache_dir");
  return std::shared_ptr<ObjectCache>(new ObjectCache(folder, most_bytes));
}

std::string ObjectCache::path_of(const Hash128& object, int64_t block) const {
  const std::string name = to_hex(object);
  return folder_ + "/" + name.substr(0, 2) + "/" + name + "-" + std::to_string(block) + kSuffix;
}

std::optional<std::string> ObjectCache::read(const Hash128& object, int64_t block, int64_t block_bytes, int64_t offset, int64_t count) {
  const std::string path = path_of(object, block);
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat info{};
  if (file.number < 0 || ::fstat(file.number, &info) != 0) return std::nullopt;
  ::futimens(file.number, nullptr);  // used now
  bool checked = false;
  {
    std::lock_guard lock(mutex_);
    checked = checked_.contains(path);
  }
  std::string bytes(size_t(checked ? count : block_bytes + kHashBytes), '\0');
  const bool whole = info.st_size == block_bytes + kHashBytes && read_at(file.number, checked ? offset : 0, &bytes);
  if (whole && checked) return bytes;
  const Hash128 hash = whole ? hash_bytes(bytes.data(), size_t(block_bytes)) : Hash128{};
  if (!whole || std::memcmp(&hash, bytes.data() + block_bytes, sizeof hash) != 0) {
    log_warning("the cached block {} is damaged: it is read from its source again", path);
    drop(object, block);
    return std::nullopt;
  }
  std::lock_guard lock(mutex_);
  checked_.insert(path);
  return bytes.substr(size_t(offset), size_t(count));
}

void ObjectCache::put(const Hash128& object, int64_t block, std::string_view bytes) {
  const std::string path = path_of(object, block);
  const Hash128 hash = hash_bytes(bytes.data(), bytes.size());
  std::error_code ignored;
  fs::create_directories(fs::path(path).parent_path(), ignored);
  std::string form = path + ".tmpXXXXXX";
  const Descriptor file{::mkostemp(form.data(), O_CLOEXEC)};
  const auto all = [&](const void* from, size_t size) {
    for (size_t done = 0; done < size;) {
      const ssize_t put = ::write(file.number, static_cast<const char*>(from) + done, size - done);
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return false;
      done += size_t(put);
    }
    return true;
  };
  if (file.number < 0 || !all(bytes.data(), bytes.size()) || !all(&hash, sizeof hash) || ::rename(form.c_str(), path.c_str()) != 0) {
    log_warning("cannot keep a block in {}: {}", folder_, std::strerror(errno));
    ::unlink(form.c_str());
    return;
  }
  bool look = false;
  {
    std::lock_guard lock(mutex_);
    checked_.insert(path);
    written_since_ += int64_t(bytes.size()) + kHashBytes;
    look = !looked_ || written_since_ > most_bytes_ / 32;
    if (look) looked_ = true, written_since_ = 0;
  }
  if (look) make_room();
}

void ObjectCache::drop(const Hash128& object, int64_t block) {
  const std::string path = path_of(object, block);
  ::unlink(path.c_str());
  std::lock_guard lock(mutex_);
  checked_.erase(path);
}

int64_t ObjectCache::bytes_on_disk() const { return sum_of(list(folder_)); }

// One process at a time; the others' turn comes with their next write.
void ObjectCache::make_room() {
  const Descriptor lock{::open((folder_ + "/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)};
  if (lock.number < 0 || ::flock(lock.number, LOCK_EX | LOCK_NB) != 0) return;
  std::vector<Entry> entries = list(folder_);
  int64_t sum = sum_of(entries);
  if (sum <= most_bytes_ - most_bytes_ / 16) return;
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.used_ns < b.used_ns; });
  std::vector<std::string> gone;
  for (const Entry& entry : entries) {
    if (sum <= most_bytes_ - most_bytes_ / 16) break;
    if (::unlink(entry.path.c_str()) == 0) sum -= entry.size, gone.push_back(entry.path);
  }
  std::lock_guard guard(mutex_);
  for (const std::string& path : gone) checked_.erase(path);
}

}  // namespace tessera::data
