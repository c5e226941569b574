// Files outside the repository that some tests compare with: TESSERA_GOLDENS and TESSERA_SAMPLE_DATA, by default
// ../shared/goldens and ../shared/data beside the repository (tests run in its root).
#pragma once

#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tessera::data::test {

namespace fs = std::filesystem;

inline fs::path shared_dir(const char* variable, const char* fallback) {
  const char* value = std::getenv(variable);
  return value && *value ? fs::path(value) : fs::path(fallback);
}
inline fs::path goldens_dir() { return shared_dir("TESSERA_GOLDENS", "../shared/goldens"); }
inline fs::path sample_dir() { return shared_dir("TESSERA_SAMPLE_DATA", "../shared/data"); }
inline bool shared_required() {
  const char* value = std::getenv("TESSERA_REQUIRE_SHARED");
  return value && std::string(value) == "1";
}

inline std::vector<uint8_t> read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}
inline nlohmann::json read_json(const fs::path& path) {
  std::ifstream in(path);
  return nlohmann::json::parse(in);
}

// Files of a folder whose name starts and ends so, in order; empty if there is no such folder.
inline std::vector<fs::path> files_like(const fs::path& folder, const std::string& prefix, const std::string& suffix) {
  std::vector<fs::path> out;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(prefix) && name.ends_with(suffix)) out.push_back(entry.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

inline std::string sha256(const std::vector<uint8_t>& bytes) {
  unsigned char digest[32];
  unsigned size = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr);
  std::string text;
  for (const unsigned char byte : digest) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  return text;
}

}  // namespace tessera::data::test

// Ends the test: skipped with the path named, or failed when TESSERA_REQUIRE_SHARED=1.
#define NEED_SHARED(condition, path)                                                                     \
  do {                                                                                                   \
    if (!(condition)) {                                                                                  \
      if (::tessera::data::test::shared_required()) FAIL() << "not there: " << (path).string();          \
      GTEST_SKIP() << "not there: " << (path).string();                                                  \
    }                                                                                                    \
  } while (0)
