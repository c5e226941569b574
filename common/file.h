// Files, durably: small helpers over POSIX with errors that name path and cause.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace tessera {

// Whole file. Errors: kIo (missing, unreadable, larger than limit_bytes).
Result<std::string> read_file(const std::string& path, int64_t limit_bytes = int64_t{1} << 31);
// Writes path.tmp-<pid>, fsyncs, renames over path, fsyncs the folder. Error: kIo; path is then as before.
Status write_file_atomic(const std::string& path, std::string_view content, unsigned mode = 0644);
Status fsync_folder(const std::string& path);
Status make_folders(const std::string& path);
// Free bytes that an ordinary user may take on the file system of path (or of its nearest existing parent).
Result<int64_t> free_bytes(const std::string& path);
// "NFS", "CIFS", ... when the file system of path is a network one; empty otherwise.
std::string network_file_system(const std::string& path);
// Folder of the running executable, for the helper programs beside it.
std::string executable_folder();
// Readable: 1.5 GB.
std::string human_bytes(int64_t bytes);

}  // namespace tessera
