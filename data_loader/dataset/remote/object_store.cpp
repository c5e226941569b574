#include "data_loader/dataset/remote/object_store.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <pugixml.hpp>

#include "common/log.h"
#include "data_loader/dataset/remote/url.h"

namespace tessera::data {
namespace {

std::string cache_folder(const std::string& wanted) {
  if (wanted != "auto") return wanted;
  if (const char* cache = std::getenv("TESSERA_CACHE"); cache && *cache) return std::string(cache) + "/objects";
  const char* home = std::getenv("HOME");
  return std::string(home && *home ? home : "/tmp") + "/.cache/tessera/objects";
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && value >= 0 ? std::optional(value) : std::nullopt;
}

// "bytes 0-99/1234" -> 1234.
std::optional<int64_t> size_in_range(const std::string& content_range) {
  const size_t slash = content_range.find('/');
  return slash == std::string::npos ? std::nullopt : whole_number(std::string_view(content_range).substr(slash + 1));
}

struct Bucket {
  std::string name, key;
};
Bucket bucket_of(const std::string& path) {
  const std::string rest = path.substr(std::string("s3://").size());
  const size_t slash = rest.find('/');
  return slash == std::string::npos ? Bucket{rest, ""} : Bucket{rest.substr(0, slash), rest.substr(slash + 1)};
}

tl::unexpected<Error> changed(const RemoteObject& object, int64_t offset, const std::string& how) {
  return fail(ErrorCode::kFixData, "[data_loader] " + printable_url(object.url) + " at byte " + std::to_string(offset) + ": the object changed while it is in use: " + how +
                                       "; put the old object back, or run tessera data index and start a new lineage");
}

}  // namespace

int64_t RemoteObject::version() const { return int64_t(hash_bytes(etag.empty() ? modified : etag).low >> 1); }

Hash128 RemoteObject::identity() const {
  Hasher hasher;
  hasher.add_string(url);
  hasher.add_i64(size);
  hasher.add_string(etag.empty() ? modified : etag);
  return hasher.finish();
}

std::shared_ptr<ObjectStore> ObjectStore::open(const RemoteOptions& options) {
  std::shared_ptr<ObjectCache> cache;
  if (const std::string folder = cache_folder(options.cache_dir); !folder.empty()) {
    auto opened = ObjectCache::open(folder, options.cache_bytes);
    if (opened) cache = std::move(*opened);
    else log_warning("{}; remote data is read without a cache", opened.error().message);
  }
  return std::shared_ptr<ObjectStore>(new ObjectStore(options, std::move(cache)));
}

std::string ObjectStore::url_of(const std::string& path) const {
  if (!is_s3_path(path)) return path;
  const Bucket bucket = bucket_of(path);
  return http_.s3().endpoint + "/" + percent_encode(bucket.name, false) + "/" + percent_encode(bucket.key, true);
}

Result<RemoteObject> ObjectStore::object(const std::string& path) {
  {
    std::lock_guard lock(mutex_);
    if (const auto it = known_.find(path); it != known_.end()) return it->second;
  }
  HttpRequest request;
  request.url = url_of(path), request.head = true, request.to_s3 = is_s3_path(path);
  TESSERA_ASSIGN(const HttpAnswer answer, http_.send(request));
  if (answer.status != 200) return fail(ErrorCode::kFixData, "[data_loader] HEAD " + printable_url(request.url) + ": " + status_reason(answer.status, request.to_s3));
  const auto size = whole_number(answer.header("content-length"));
  if (!size) return fail(ErrorCode::kFixData, "[data_loader] HEAD " + printable_url(request.url) + ": the server tells no Content-Length; use a server that does");
  RemoteObject out{path, request.url, *size, answer.header("etag"), answer.header("last-modified")};
  std::lock_guard lock(mutex_);
  return known_[path] = std::move(out);
}

Result<std::optional<std::string>> ObjectStore::whole_if_there(const std::string& path) {
  HttpRequest request;
  request.url = url_of(path), request.to_s3 = is_s3_path(path);
  TESSERA_ASSIGN(HttpAnswer answer, http_.send(request));
  if (answer.status == 404 || answer.status == 403) return std::nullopt;
  if (answer.status != 200) return fail(ErrorCode::kFixData, "[data_loader] GET " + printable_url(request.url) + ": " + status_reason(answer.status, request.to_s3));
  return std::optional(std::move(answer.body));
}

Result<std::vector<RemoteObject>> ObjectStore::list(const std::string& s3_prefix) {
  const Bucket bucket = bucket_of(s3_prefix);
  const std::string base = http_.s3().endpoint + "/" + percent_encode(bucket.name, false);
  std::vector<RemoteObject> out;
  for (std::string token;;) {
    // In the order of their names, as the signature wants them.
    HttpRequest request;
    request.url = base + "?" + (token.empty() ? "" : "continuation-token=" + percent_encode(token, false) + "&") + "delimiter=%2F&encoding-type=url&list-type=2&prefix=" + percent_encode(bucket.key, false);
    request.to_s3 = true;
    TESSERA_ASSIGN(const HttpAnswer answer, http_.send(request));
    const std::string what = "[data_loader] listing " + s3_prefix + " at " + printable_url(request.url) + ": ";
    if (answer.status != 200) return fail(ErrorCode::kFixData, what + status_reason(answer.status, true));
    pugi::xml_document document;
    const pugi::xml_parse_result parsed = document.load_buffer(answer.body.data(), answer.body.size());
    const pugi::xml_node root = document.child("ListBucketResult");
    if (!parsed || !root) return fail(ErrorCode::kFixData, what + "the answer is no ListBucketResult; is AWS_ENDPOINT_URL that of an object store?");
    for (const pugi::xml_node item : root.children("Contents")) {
      const std::string key = percent_decode(item.child_value("Key"));
      const auto size = whole_number(item.child_value("Size"));
      if (!key.starts_with(bucket.key) || !size) return fail(ErrorCode::kFixData, what + "an entry has no key below the prefix, or no size");
      const std::string path = "s3://" + bucket.name + "/" + key;
      out.push_back({path, url_of(path), *size, item.child_value("ETag"), item.child_value("LastModified")});
    }
    if (std::string_view(root.child_value("IsTruncated")) != "true") break;
    const std::string next = root.child_value("NextContinuationToken");
    if (next.empty() || next == token) return fail(ErrorCode::kFixData, what + "the listing is cut and tells no way to go on");
    token = next;
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  std::lock_guard lock(mutex_);
  for (const RemoteObject& object : out) known_[object.path] = object;
  return out;
}

Result<std::string> ObjectStore::fetch(const RemoteObject& object, int64_t offset, int64_t count) const {
  HttpRequest request;
  request.url = object.url, request.to_s3 = is_s3_path(object.path);
  request.first_byte = offset, request.byte_count = count;
  if (!object.etag.empty() && !object.etag.starts_with("W/")) request.headers.push_back("If-Match: " + object.etag);
  TESSERA_ASSIGN(HttpAnswer answer, http_.send(request));
  const std::string etag = answer.header("etag"), modified = answer.header("last-modified");
  if (answer.status == 412) return changed(object, offset, "its ETag is " + (etag.empty() ? "another one" : etag) + ", it was " + object.etag + " (HTTP 412)");
  if (answer.status == 416) return changed(object, offset, "it is shorter than the " + std::to_string(object.size) + " bytes it had (HTTP 416)");
  if (answer.status != 206 && answer.status != 200)
    return fail(ErrorCode::kFixData, "[data_loader] GET " + printable_url(object.url) + " at byte " + std::to_string(offset) + ": " + status_reason(answer.status, request.to_s3));
  if (!object.etag.empty() && !etag.empty() && etag != object.etag) return changed(object, offset, "its ETag is " + etag + ", it was " + object.etag);
  if (object.etag.empty() && !object.modified.empty() && !modified.empty() && modified != object.modified) return changed(object, offset, "it was modified at " + modified + ", before at " + object.modified);
  const auto size = answer.status == 206 ? size_in_range(answer.header("content-range")) : std::optional(object.size);
  if (size && *size != object.size) return changed(object, offset, "it has " + std::to_string(*size) + " bytes, it had " + std::to_string(object.size));
  return std::move(answer.body);
}

std::mutex& ObjectStore::turn_of(const RemoteObject& object, int64_t block) { return turns_[size_t(object.identity().low + uint64_t(block)) % turns_.size()]; }

Result<std::string> ObjectStore::blocks(const RemoteObject& object, int64_t first, int64_t count) {
  const int64_t begin = first * kBlockBytes, end = std::min(object.size, (first + count) * kBlockBytes);
  if (!cache_) return fetch(object, begin, end - begin);
  const Hash128 id = object.identity();
  std::string out;
  std::lock_guard turn(turn_of(object, first));
  for (int64_t block = first; block * kBlockBytes < end; ++block) {
    const int64_t size = std::min(kBlockBytes, object.size - block * kBlockBytes);
    if (auto cached = cache_->read(id, block, size, 0, size)) {
      out += *cached;
      continue;
    }
    // What is missing from here on comes with one request.
    TESSERA_ASSIGN(const std::string bytes, fetch(object, block * kBlockBytes, end - block * kBlockBytes));
    for (int64_t at = 0; at < int64_t(bytes.size()); at += kBlockBytes) cache_->put(id, block + at / kBlockBytes, std::string_view(bytes).substr(size_t(at), size_t(kBlockBytes)));
    return out + bytes;
  }
  return out;
}

Result<std::string> ObjectStore::read(const RemoteObject& object, int64_t offset, int64_t count) {
  if (!cache_) return fetch(object, offset, count);
  const Hash128 id = object.identity();
  const int64_t first = offset / kBlockBytes, last = (offset + count - 1) / kBlockBytes;
  std::string out;
  for (int64_t block = first; block <= last; ++block) {
    const int64_t block_begin = block * kBlockBytes, block_size = std::min(kBlockBytes, object.size - block_begin);
    const int64_t from = std::max(offset, block_begin), to = std::min(offset + count, block_begin + block_size);
    auto cached = cache_->read(id, block, block_size, from - block_begin, to - from);
    if (!cached) {
      TESSERA_ASSIGN(const std::string bytes, blocks(object, block, last - block + 1));
      return out + bytes.substr(size_t(from - block_begin), size_t(offset + count - from));
    }
    out += *cached;
  }
  return out;
}

void ObjectStore::forget(const RemoteObject& object, int64_t offset, int64_t count) {
  for (int64_t block = offset / kBlockBytes; cache_ && block * kBlockBytes < offset + count; ++block) cache_->drop(object.identity(), block);
}

}  // namespace tessera::data
