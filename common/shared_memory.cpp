#include "common/shared_memory.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <random>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tessera {
namespace {

constexpr int64_t kHeadBytes = 4096;  // magic and nonce; what follows is the content
constexpr uint64_t kMagic = 0x54455353'48415245;

struct Head {
  uint64_t magic = 0, nonce = 0;
};

std::string find_host_identity() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  struct stat space{};
  if (!(file >> boot) || ::stat("/proc/self/ns/pid", &space) != 0) return "";
  return boot + "/" + std::to_string(space.st_ino) + "/" + std::to_string(::geteuid());
}

}  // namespace

const std::string& host_identity() {
  static const std::string identity = find_host_identity();
  return identity;
}

Result<std::shared_ptr<SharedBuffer>> SharedBuffer::create(int64_t size_bytes) {
  std::shared_ptr<SharedBuffer> out(new SharedBuffer());
  const auto failed = [&](const char* what) { return fail(ErrorCode::kIo, "[shared memory] " + std::string(what) + " of " + std::to_string(size_bytes) + " bytes: " + std::strerror(errno)); };
  out->descriptor_ = ::memfd_create("tessera", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (out->descriptor_ < 0) return failed("memfd_create");
  if (::ftruncate(out->descriptor_, size_bytes + kHeadBytes) != 0) return failed("ftruncate");
  // It can never get shorter: no reader gets SIGBUS.
  if (::fcntl(out->descriptor_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return failed("sealing");
  void* mapping = ::mmap(nullptr, size_t(size_bytes + kHeadBytes), PROT_READ | PROT_WRITE, MAP_SHARED, out->descriptor_, 0);
  if (mapping == MAP_FAILED) return failed("mmap");
  out->mapping_ = mapping, out->size_ = size_bytes;
  std::random_device random;
  out->nonce_ = (uint64_t{random()} << 32 | random()) | 1;
  const Head head{kMagic, out->nonce_};
  std::memcpy(mapping, &head, sizeof head);
  return out;
}

SharedBuffer::~SharedBuffer() {
  if (mapping_) ::munmap(mapping_, size_t(size_ + kHeadBytes));
  if (descriptor_ >= 0) ::close(descriptor_);
}

uint8_t* SharedBuffer::data() const { return static_cast<uint8_t*>(mapping_) + kHeadBytes; }

Result<std::shared_ptr<SharedView>> SharedView::open(int64_t pid, int32_t descriptor, uint64_t nonce, int64_t size_bytes) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(descriptor);
  const auto failed = [&](const std::string& why) { return fail(ErrorCode::kUnavailable, "[shared memory] " + path + ": " + why); };
  struct stat info{};
  // Before opening, which would wait for a FIFO's other end.
  if (pid <= 0 || ::stat(path.c_str(), &info) != 0) return failed(std::strerror(errno));
  if (!S_ISREG(info.st_mode) || info.st_size < kHeadBytes || size_bytes < 0 || info.st_size - kHeadBytes < size_bytes) return failed("is other memory than was announced");
  const int opened = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (opened < 0) return failed(std::strerror(errno));
  Head head;
  const int seals = ::fcntl(opened, F_GET_SEALS);
  const bool same = seals >= 0 && (seals & F_SEAL_SHRINK) && ::pread(opened, &head, sizeof head, 0) == ssize_t(sizeof head) && head.magic == kMagic && head.nonce == nonce;
  void* mapping = same ? ::mmap(nullptr, size_t(size_bytes + kHeadBytes), PROT_READ, MAP_SHARED, opened, 0) : MAP_FAILED;
  ::close(opened);
  if (!same) return failed("is other memory than was announced");
  if (mapping == MAP_FAILED) return failed(std::string("mmap: ") + std::strerror(errno));
  std::shared_ptr<SharedView> out(new SharedView());
  out->mapping_ = mapping, out->size_ = size_bytes;
  return out;
}

SharedView::~SharedView() {
  if (mapping_) ::munmap(mapping_, size_t(size_ + kHeadBytes));
}

const uint8_t* SharedView::data() const { return static_cast<const uint8_t*>(mapping_) + kHeadBytes; }

Result<const uint8_t*> SharedViews::get(int64_t pid, int32_t descriptor, uint64_t nonce, int64_t size_bytes) {
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->pid != pid || it->descriptor != descriptor || it->nonce != nonce || it->view->size() < size_bytes) continue;
    entries_.splice(entries_.begin(), entries_, it);
    return it->view->data();
  }
  TESSERA_ASSIGN(auto view, SharedView::open(pid, descriptor, nonce, size_bytes));
  if (entries_.size() >= kMost) entries_.pop_back();
  entries_.push_front({pid, descriptor, nonce, std::move(view)});
  return entries_.front().view->data();
}

}  // namespace tessera
