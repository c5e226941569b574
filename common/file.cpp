#include "common/file.h"

#include <cerrno>
#include <climits>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace tessera {
namespace {
std::string why() { return std::strerror(errno); }
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};
}  // namespace

Result<std::string> read_file(const std::string& path, int64_t limit_bytes) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) return fail(ErrorCode::kIo, "cannot read " + path + ": " + why());
  struct stat info{};
  if (fstat(file.fd, &info) != 0) return fail(ErrorCode::kIo, "cannot read " + path + ": " + why());
  if (info.st_size > limit_bytes)
    return fail(ErrorCode::kIo, "cannot read " + path + ": " + human_bytes(info.st_size) + ", more than the limit of " + human_bytes(limit_bytes));
  std::string out;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t got = ::read(file.fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(ErrorCode::kIo, "cannot read " + path + ": " + why());
    if (got == 0) return out;
    out.append(buffer, size_t(got));
    if (int64_t(out.size()) > limit_bytes) return fail(ErrorCode::kIo, "cannot read " + path + ": more than the limit of " + human_bytes(limit_bytes));
  }
}

Status write_file_atomic(const std::string& path, std::string_view content, unsigned mode) {
  const std::string temporary = path + ".tmp-" + std::to_string(::getpid());
  const auto failed = [&](const char* what) {
    const std::string cause = why();
    ::unlink(temporary.c_str());
    return fail(ErrorCode::kIo, std::string("cannot ") + what + " " + path + ": " + cause);
  };
  {
    Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)};
    if (file.fd < 0) return failed("write");
    for (size_t done = 0; done < content.size();) {
      const ssize_t put = ::write(file.fd, content.data() + done, content.size() - done);
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return failed("write");
      done += size_t(put);
    }
    if (::fsync(file.fd) != 0) return failed("write");
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return failed("replace");
  const auto parent = std::filesystem::path(path).parent_path();
  return fsync_folder(parent.empty() ? "." : parent.string());
}

Status fsync_folder(const std::string& path) {
  Descriptor folder{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (folder.fd < 0 || ::fsync(folder.fd) != 0) return fail(ErrorCode::kIo, "cannot sync folder " + path + ": " + why());
  return {};
}

Status make_folders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return fail(ErrorCode::kIo, "cannot make folder " + path + ": " + error.message());
  return {};
}

Result<int64_t> free_bytes(const std::string& path) {
  std::filesystem::path here = std::filesystem::absolute(path);
  while (!here.empty() && !std::filesystem::exists(here) && here != here.parent_path()) here = here.parent_path();
  struct statvfs info{};
  if (statvfs(here.c_str(), &info) != 0) return fail(ErrorCode::kIo, "cannot ask for the free space of " + path + ": " + why());
  return int64_t(info.f_bavail) * int64_t(info.f_frsize);
}

std::string network_file_system(const std::string& path) {
  struct statfs info{};
  std::filesystem::path here = std::filesystem::absolute(path);
  while (!here.empty() && !std::filesystem::exists(here) && here != here.parent_path()) here = here.parent_path();
  if (statfs(here.c_str(), &info) != 0) return "";
  switch (static_cast<unsigned long>(info.f_type)) {
    case 0x6969: return "NFS";
    case 0x517B:
    case 0xFF534D42:
    case 0xFE534D42: return "SMB";
    case 0x0BD00BD0: return "Lustre";
    case 0x47504653: return "GPFS";
    case 0x00C36400: return "CephFS";
    case 0x01021997: return "9p";
    default: return "";
  }
}

std::string executable_folder() {
  char path[PATH_MAX];
  const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path - 1);
  if (size <= 0) return ".";
  return std::filesystem::path(std::string(path, size_t(size))).parent_path().string();
}

std::string human_bytes(int64_t bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  double value = double(bytes);
  int unit = 0;
  while (value >= 1000 && unit < 5) value /= 1000, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

}  // namespace tessera
