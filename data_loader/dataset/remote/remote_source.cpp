#include "data_loader/dataset/remote/remote_source.h"

#include <algorithm>
#include <cctype>
#include <fnmatch.h>

#include "data_loader/dataset/parallel.h"
#include "data_loader/dataset/remote/url.h"

namespace tessera::data {
namespace {

constexpr int kRequestsAtOnce = 16;

bool is_tar(const std::string& name) {
  std::string end = name.size() < 4 ? "" : name.substr(name.size() - 4);
  for (char& c : end) c = char(std::tolower(static_cast<unsigned char>(c)));
  return end == ".tar";
}

std::string folder_of(const std::string& path, size_t before = std::string::npos) { return path.substr(0, path.rfind('/', before)); }

// Lines of a listing as paths below `base`.
Result<std::vector<std::string>> parse_listing(const std::string& path, const std::string& base, const std::string& text) {
  std::vector<std::string> out;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1, ++number;
    line = line.substr(0, line.find('#'));
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    line.erase(0, std::min(line.size(), line.find_first_not_of(" \t")));
    if (line.empty()) continue;
    if (line.starts_with(base + "/")) line.erase(0, base.size() + 1);
    if (is_remote_path(line) || line.starts_with("/") || !is_tar(line))
      return fail(ErrorCode::kFixData, "[data_loader] " + printable_url(path) + " line " + std::to_string(number) + ": '" + line + "' is no .tar below " + printable_url(base) + "; a listing names one shard a line, relative to its own folder");
    TESSERA_ASSIGN(const auto names, expand_braces(line));
    for (const std::string& name : names) out.push_back(base + "/" + name);
  }
  return out;
}

Result<std::vector<std::string>> shard_paths(const std::string& data_path, const std::string& base, ObjectStore& store) {
  if (data_path.find('{') != std::string::npos) return expand_braces(data_path);
  const size_t wildcard = data_path.find_first_of("*?[");
  std::vector<std::string> out;
  if (is_s3_path(data_path) && (data_path == base || data_path.ends_with('/') || wildcard != std::string::npos)) {
    TESSERA_ASSIGN(const auto objects, store.list(wildcard == std::string::npos ? base + "/" : data_path.substr(0, wildcard)));
    for (const RemoteObject& object : objects)
      if (is_tar(object.path) && (wildcard == std::string::npos || ::fnmatch(data_path.c_str(), object.path.c_str(), FNM_PATHNAME | FNM_PERIOD) == 0)) out.push_back(object.path);
    return out;
  }
  if (is_tar(data_path)) return std::vector{data_path};
  TESSERA_ASSIGN(const auto text, store.whole_if_there(data_path));
  if (!text) return fail(ErrorCode::kFixData, "[data_loader] GET " + printable_url(data_path) + ": " + status_reason(404, is_s3_path(data_path)));
  return parse_listing(data_path, base, *text);
}

}  // namespace

Result<SourcePlace> place_remote_source(const std::string& data_path) {
  const auto bad = [&](const std::string& why) { return fail(ErrorCode::kFixConfig, "[data_loader] operation.data_path " + printable_url(data_path) + " " + why); };
  const size_t host = data_path.find("://") + 3, first_slash = data_path.find('/', host);
  if (host >= data_path.size() || first_slash == host) return bad(is_s3_path(data_path) ? "names no bucket; write s3://BUCKET/PREFIX/" : "names no host");
  if (const Result<std::vector<std::string>> names = expand_braces(data_path); !names) return tl::unexpected<Error>(names.error());
  SourcePlace out{data_path, data_path, false};
  if (is_s3_path(data_path)) {
    const size_t special = data_path.find_first_of("*?[{");
    if (special != std::string::npos) out.base = folder_of(data_path, special);
    else if (is_tar(data_path)) out.base = folder_of(data_path);
    while (out.base.ends_with('/')) out.base.pop_back();
    if (out.base.size() < host) return bad("names no bucket; write s3://BUCKET/PREFIX/");
    return out;
  }
  if (first_slash == std::string::npos || data_path.ends_with('/'))
    return bad("is a folder, which plain HTTP cannot list; write the shards as train-{000..099}.tar, or name a listing file");
  if (data_path.find('?') != std::string::npos) return bad("has a query; name the shards themselves");
  out.base = folder_of(data_path, data_path.find('{'));
  return out;
}

Result<Source> find_remote_source(const std::string& data_path, ObjectStore& store) {
  TESSERA_ASSIGN(const SourcePlace place, place_remote_source(data_path));
  TESSERA_ASSIGN(std::vector<std::string> paths, shard_paths(data_path, place.base, store));
  std::sort(paths.begin(), paths.end());
  paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
  if (paths.empty()) return fail(ErrorCode::kFixData, "[data_loader] there are no .tar shards at " + printable_url(data_path) + "; check operation.data_path" + (is_s3_path(data_path) ? " and AWS_ENDPOINT_URL" : ""));
  Source source{"tar", place.base, place.source, std::vector<ManifestDraft::File>(paths.size())};
  TESSERA_TRY(parallel_for(int64_t(paths.size()), kRequestsAtOnce, [&](int64_t i) -> Status {
    const std::string& path = paths[size_t(i)];
    if (!is_tar(path)) return fail(ErrorCode::kFixData, "[data_loader] " + printable_url(path) + " is no .tar; name tar shards");
    TESSERA_ASSIGN(const RemoteObject object, store.object(path));
    source.files[size_t(i)] = {path.substr(place.base.size() + 1), object.size, object.version(), FileRole::kShard};
    return {};
  }));
  TESSERA_ASSIGN(const auto classes, store.whole_if_there(place.base + "/classes.txt"));
  if (classes) source.files.push_back({"classes.txt", int64_t(classes->size()), int64_t(hash_bytes(*classes).low >> 1), FileRole::kSidecar});
  return source;
}

}  // namespace tessera::data
