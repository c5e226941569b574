#include "data_loader/dataset/source.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <filesystem>
#include <glob.h>
#include <set>
#include <sys/stat.h>

#include "data_loader/dataset/remote/remote_source.h"
#include "data_loader/dataset/remote/url.h"

namespace tessera::data {
namespace {

constexpr int kMaxDepth = 16;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = char(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

int64_t modified_ns(const struct stat& info) { return int64_t(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec; }

std::string joined(const std::string& folder, const std::string& name) { return folder.empty() ? name : folder + "/" + name; }

Result<std::vector<std::string>> list_names(const std::string& folder) {
  DIR* handle = ::opendir(folder.c_str());
  if (!handle) return fail(ErrorCode::kFixData, "[data_loader] cannot list " + folder + ": " + std::strerror(errno));
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(handle))
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  ::closedir(handle);
  std::sort(names.begin(), names.end());
  return names;
}

int64_t listing_hash(const std::vector<std::string>& names) {
  Hasher hasher;
  for (const std::string& name : names) hasher.add_string(name);
  return int64_t(hasher.finish().low >> 1);
}

bool is_sidecar(std::string_view extension) { return extension == "cls" || extension == "json"; }

// Walks an image folder; `path` is relative to the base, empty for the base itself.
class FolderWalk {
 public:
  explicit FolderWalk(Source* source) : source_(*source) {}
  Status walk(const std::string& path, int depth) {
    const std::string folder = joined_base(path);
    if (depth > kMaxDepth) return fail(ErrorCode::kFixData, "[data_loader] folders below " + source_.base + " are nested more than " + std::to_string(kMaxDepth) + " deep at " + path + "; is there a loop of links?");
    TESSERA_ASSIGN(const std::vector<std::string> names, list_names(folder));
    struct stat info{};
    ::stat(folder.c_str(), &info);
    if (path.empty()) folders_.push_back({".", listing_hash(names), 0, FileRole::kFolder});
    else folders_.push_back({path, 0, modified_ns(info), FileRole::kFolder});
    for (const std::string& name : names) TESSERA_TRY(visit(joined(path, name), name, depth));
    return {};
  }
  void finish() {
    const auto by_path = [](const auto& a, const auto& b) { return a.path < b.path; };
    std::sort(files_.begin(), files_.end(), by_path);
    std::sort(folders_.begin(), folders_.end(), by_path);
    source_.files = std::move(files_);
    source_.files.insert(source_.files.end(), folders_.begin(), folders_.end());
  }
  int64_t images() const { return images_; }

 private:
  std::string joined_base(const std::string& path) const { return path.empty() ? source_.base : source_.base + "/" + path; }
  Status visit(const std::string& path, const std::string& name, int depth) {
    const size_t dot = name.rfind('.');
    const std::string extension = dot == std::string::npos ? "" : lower(name.substr(dot + 1));
    const bool image = is_image_extension(extension), sidecar = is_sidecar(extension) || path == "classes.txt";
    struct stat info{};
    if (::stat(joined_base(path).c_str(), &info) != 0) {
      if (!image && !sidecar) return {};
      return fail(ErrorCode::kFixData, "[data_loader] cannot read " + joined_base(path) + ": " + std::strerror(errno) + "; a dangling link? remove it or restore its target");
    }
    if (S_ISDIR(info.st_mode)) return walk(path, depth + 1);
    if (!S_ISREG(info.st_mode) || (!image && !sidecar)) return {};
    images_ += image;
    files_.push_back({path, info.st_size, modified_ns(info), image ? FileRole::kImage : FileRole::kSidecar});
    return {};
  }

  Source& source_;
  std::vector<ManifestDraft::File> files_, folders_;
  int64_t images_ = 0;
};

Result<std::vector<std::string>> find_tars(const SourcePlace& place) {
  std::vector<std::string> out;
  if (place.whole_folder) {
    TESSERA_ASSIGN(const std::vector<std::string> names, list_names(place.base));
    for (const std::string& name : names)
      if (lower(name).ends_with(".tar")) out.push_back(name);
    return out;
  }
  glob_t found{};
  const int rc = ::glob(place.source.c_str(), GLOB_ERR, nullptr, &found);
  for (size_t i = 0; rc == 0 && i < found.gl_pathc; ++i) out.push_back(std::string(found.gl_pathv[i]).substr(place.base.size() + 1));
  ::globfree(&found);
  std::sort(out.begin(), out.end());
  for (const std::string& name : out)
    if (!lower(name).ends_with(".tar")) return fail(ErrorCode::kFixData, "[data_loader] " + place.source + " matches " + name + ", which is no .tar; name a folder of images, or a pattern of tar shards");
  return out;
}

Status add_tars(Source* source, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    struct stat info{};
    if (::stat((source->base + "/" + name).c_str(), &info) != 0 || !S_ISREG(info.st_mode))
      return fail(ErrorCode::kFixData, "[data_loader] cannot read shard " + source->base + "/" + name + ": " + std::strerror(errno));
    source->files.push_back({name, info.st_size, modified_ns(info), FileRole::kShard});
  }
  struct stat info{};
  if (::stat((source->base + "/classes.txt").c_str(), &info) == 0 && S_ISREG(info.st_mode)) source->files.push_back({"classes.txt", info.st_size, modified_ns(info), FileRole::kSidecar});
  return {};
}

std::string why_stale_remote(const Manifest& manifest, const SourcePlace& place, ObjectStore& store) {
  const auto now = find_remote_source(place.source, store);
  if (!now) return now.error().message;
  if (now->files.size() != manifest.files().size()) return "the shards are other ones than when it was indexed";
  for (uint32_t i = 0; i < manifest.files().size(); ++i) {
    const FileEntry& before = manifest.files()[i];
    const auto& file = now->files[i];
    if (file.path != manifest.file_path(i)) return "the shards are other ones than when it was indexed";
    if (file.size != before.size || file.modified_ns != before.modified_ns) return file.path + " was changed";
  }
  return "";
}

}  // namespace

bool split_member_name(std::string_view name, std::string* key, std::string* extension) {
  const size_t slash = name.rfind('/');
  const size_t begin = slash == std::string_view::npos ? 0 : slash + 1;
  const size_t dot = name.find('.', begin);
  if (dot == std::string_view::npos || dot == begin || dot + 1 == name.size()) return false;
  *key = std::string(name.substr(0, dot));
  *extension = lower(name.substr(dot + 1));
  return true;
}

bool is_image_extension(std::string_view extension) { return extension == "jpg" || extension == "jpeg" || extension == "png"; }

Result<SourcePlace> place_source(const std::string& data_path) {
  if (data_path.empty()) return fail(ErrorCode::kFixConfig, "[data_loader] no dataset is named; set operation.data_path to a folder of images, a folder or pattern of tar shards, http(s):// or s3:// shards, or scenes:N");
  if (is_remote_path(data_path)) return place_remote_source(data_path);
  std::error_code error;
  std::string path = std::filesystem::absolute(data_path, error).lexically_normal().string();
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  struct stat info{};
  if (::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return SourcePlace{path, path, true};
  const size_t wildcard = path.find_first_of("*?[");
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (!exists && wildcard == std::string::npos)
    return fail(ErrorCode::kFixData, "[data_loader] there is no dataset at " + data_path + " (" + path + "); check operation.data_path, or use scenes:10000 for a procedural one");
  const std::string base = path.substr(0, path.rfind('/', exists ? std::string::npos : wildcard));
  return SourcePlace{base, path, false};
}

Result<Source> find_source(const std::string& data_path, ObjectStore* store) {
  if (is_remote_path(data_path)) return find_remote_source(data_path, *store);
  TESSERA_ASSIGN(const SourcePlace place, place_source(data_path));
  Source source{"tar", place.base, place.source, {}};
  TESSERA_ASSIGN(const std::vector<std::string> tars, find_tars(place));
  if (!tars.empty()) {
    TESSERA_TRY(add_tars(&source, tars));
    return source;
  }
  if (!place.whole_folder) return fail(ErrorCode::kFixData, "[data_loader] no file matches " + data_path + "; check operation.data_path");
  source.kind = "folder";
  FolderWalk walk(&source);
  TESSERA_TRY(walk.walk("", 0));
  if (walk.images() == 0) return fail(ErrorCode::kFixData, "[data_loader] " + data_path + " holds neither images (jpg, jpeg, png) nor .tar shards; check operation.data_path");
  walk.finish();
  return source;
}

std::string why_stale(const Manifest& manifest, const SourcePlace& place, ObjectStore* store) {
  if (is_remote_path(place.base)) return why_stale_remote(manifest, place, *store);
  if (manifest.kind() == "tar") {
    const auto now = find_tars(place);
    std::vector<std::string> before;
    for (uint32_t i = 0; i < manifest.files().size(); ++i)
      if (manifest.files()[i].role == FileRole::kShard) before.emplace_back(manifest.file_path(i));
    if (!now || *now != before) return "the shards are other ones than when it was indexed";
  } else if (!place.whole_folder) {
    return "it was a folder when it was indexed";
  } else if (const auto tars = find_tars(place); !tars || !tars->empty()) {
    return "it holds tar shards now";
  }
  const bool all = manifest.kind() == "tar" || manifest.files().size() <= kStatLimit;
  for (uint32_t i = 0; i < manifest.files().size(); ++i) {
    const FileEntry& file = manifest.files()[i];
    const std::string path(manifest.file_path(i));
    if (file.role == FileRole::kFolder && path == ".") {
      const auto names = list_names(place.base);
      if (!names || listing_hash(*names) != file.size) return "files were added to or removed from " + place.base;
    } else if (all || file.role == FileRole::kFolder) {
      struct stat info{};
      if (::stat((place.base + "/" + path).c_str(), &info) != 0) return path + " is gone";
      const bool folder = file.role == FileRole::kFolder;
      if (modified_ns(info) != file.modified_ns || (!folder && info.st_size != file.size)) return path + " was changed";
    }
  }
  return "";
}

}  // namespace tessera::data
