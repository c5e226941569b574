// Files for tests of datasets: a temporary folder, small encoded images, tars.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "common/file.h"
#include "data_loader/dataset/random_access_file.h"
#include "data_loader/dataset/scenes.h"
#include "data_loader/dataset/tar.h"

namespace tessera::data {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    // Memory, where there is: fsync on a busy disk would take most of the time.
    std::error_code error;
    const bool memory = std::filesystem::is_directory("/dev/shm", error);
    std::string pattern = (memory ? "/dev/shm" : std::filesystem::temp_directory_path().string()) + "/tessera-test-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code error;
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all, std::filesystem::perm_options::add, error);
    std::filesystem::remove_all(path_, error);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void write_test_file(const std::string& path, const std::string& content) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

// JPEGs of `count` scenes, once per process.
inline const std::vector<std::string>& test_jpegs(int64_t count = 24) {
  static const std::vector<std::string> images = [&] {
    TemporaryFolder folder;
    ScenesOptions options;
    options.count = count, options.size = 32, options.seed = 5;
    EXPECT_TRUE(make_scenes(folder / "s", options));
    const auto file = RandomAccessFile::open(folder / "s/scenes-000000.tar");
    TarReader reader(*file);
    std::vector<std::string> out;
    for (auto member = reader.next(); member && *member; member = reader.next())
      if ((*member)->name.ends_with(".jpg")) out.push_back(*file->read((*member)->offset, (*member)->size));
    return out;
  }();
  return images;
}

inline std::string tar_of(const std::vector<std::pair<std::string, std::string>>& members) {
  std::string out;
  for (const auto& [name, content] : members) append_tar_member(&out, name, content);
  finish_tar(&out);
  return out;
}

}  // namespace tessera::data
