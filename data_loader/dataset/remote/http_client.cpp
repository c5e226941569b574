#include "data_loader/dataset/remote/http_client.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <curl/curl.h>
#include <random>
#include <thread>

#include "common/clock.h"
#include "common/log.h"
#include "data_loader/dataset/remote/url.h"

namespace tessera::data {
namespace {

constexpr double kFirstPause = 0.1, kLongestPause = 5, kLongestRetryAfter = 30;
constexpr long kConnectSeconds = 10, kStallBytesPerSecond = 1000;
// SHA-256 of nothing: S3 wants the body's hash in a header.
constexpr const char* kEmptyHash = "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool may_pass(int status) { return status == 408 || status == 429 || status == 500 || status == 502 || status == 503 || status == 504; }

// What libcurl's callbacks fill.
struct Sink {
  HttpAnswer answer;
  int64_t most_bytes = 0;
  bool too_much = false;
  const std::atomic<bool>* closing = nullptr;
  CURL* curl = nullptr;
};

size_t on_body(char* data, size_t, size_t count, void* to) {
  auto& sink = *static_cast<Sink*>(to);
  long status = 0;
  curl_easy_getinfo(sink.curl, CURLINFO_RESPONSE_CODE, &status);
  if (status != 200 && status != 206) return count;  // a page about the error, of any size: not kept
  if (int64_t(sink.answer.body.size() + count) > sink.most_bytes) return sink.too_much = true, 0;
  sink.answer.body.append(data, count);
  return count;
}

size_t on_header(char* data, size_t, size_t count, void* to) {
  auto& sink = *static_cast<Sink*>(to);
  std::string line(data, count);
  if (line.starts_with("HTTP/")) sink.answer.headers.clear();  // after a redirect the last answer counts
  const size_t colon = line.find(':');
  if (colon == std::string::npos) return count;
  const size_t begin = line.find_first_not_of(" \t", colon + 1), end = line.find_last_not_of(" \t\r\n");
  std::string name = line.substr(0, colon);
  for (char& c : name) c = char(std::tolower(static_cast<unsigned char>(c)));
  sink.answer.headers[name] = begin == std::string::npos || end < begin ? "" : line.substr(begin, end - begin + 1);
  return count;
}

int on_progress(void* to, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  const auto& sink = *static_cast<Sink*>(to);
  return sink.closing && sink.closing->load() ? 1 : 0;
}

}  // namespace

S3Access S3Access::from_environment() {
  S3Access out;
  out.key_id = environment("AWS_ACCESS_KEY_ID");
  out.secret = environment("AWS_SECRET_ACCESS_KEY");
  out.token = environment("AWS_SESSION_TOKEN");
  for (const char* name : {"AWS_REGION", "AWS_DEFAULT_REGION"})
    if (out.region.empty()) out.region = environment(name);
  if (out.region.empty()) out.region = "us-east-1";
  for (const char* name : {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"})
    if (out.endpoint.empty()) out.endpoint = environment(name);
  if (out.endpoint.empty()) out.endpoint = "https://s3." + out.region + ".amazonaws.com";
  while (out.endpoint.ends_with('/')) out.endpoint.pop_back();
  return out;
}

std::string HttpAnswer::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? "" : it->second;
}

struct HttpClient::Handle {
  CURL* curl = curl_easy_init();
  ~Handle() { curl_easy_cleanup(curl); }
};

struct HttpClient::Try {
  HttpAnswer answer;
  std::string failure;         // empty: there is an answer
  bool hopeless = false;       // another try would fail alike
  double retry_after_seconds = 0;
};

HttpClient::HttpClient(HttpOptions options, S3Access access) : options_(std::move(options)), access_(std::move(access)) {
  static const CURLcode once = curl_global_init(CURL_GLOBAL_DEFAULT);
  (void)once;
}
HttpClient::~HttpClient() = default;

std::unique_ptr<HttpClient::Handle> HttpClient::take_handle() const {
  std::lock_guard lock(mutex_);
  if (idle_.empty()) return std::make_unique<Handle>();
  auto out = std::move(idle_.back());
  idle_.pop_back();
  return out;
}

// What one request says of itself; what is pointed to must live until it is done.
struct Spoken {
  curl_slist* headers = nullptr;
  std::string range, signature;
  ~Spoken() { curl_slist_free_all(headers); }
};

static void set_request(CURL* curl, const HttpRequest& request, const S3Access& access, Spoken* spoken) {
  const auto add = [&](const std::string& line) { spoken->headers = curl_slist_append(spoken->headers, line.c_str()); };
  for (const std::string& line : request.headers) add(line);
  if (request.to_s3 && !access.key_id.empty()) {
    add(kEmptyHash);
    if (!access.token.empty()) add("x-amz-security-token: " + access.token);
    spoken->signature = "aws:amz:" + access.region + ":s3";
    curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, spoken->signature.c_str());
    curl_easy_setopt(curl, CURLOPT_USERNAME, access.key_id.c_str());
    curl_easy_setopt(curl, CURLOPT_PASSWORD, access.secret.c_str());
  }
  if (request.byte_count > 0) {
    spoken->range = std::to_string(request.first_byte) + "-" + std::to_string(request.first_byte + request.byte_count - 1);
    curl_easy_setopt(curl, CURLOPT_RANGE, spoken->range.c_str());
  }
  if (request.head) curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, spoken->headers);
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, request.to_s3 ? 0L : 1L);
}

static void set_limits(CURL* curl, const HttpOptions& options, Sink* sink) {
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_MAXREDIRS, 5L);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, std::min<long>(kConnectSeconds, options.stall_seconds));
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, kStallBytesPerSecond);
  curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, long(options.stall_seconds));
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "tessera");
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, sink);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, sink);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, sink);
}

HttpClient::Try HttpClient::once(const HttpRequest& request) const {
  ++tries_;
  Sink sink;
  sink.most_bytes = request.byte_count > 0 ? request.byte_count : request.most_bytes;
  sink.closing = options_.closing.get();
  auto handle = take_handle();
  CURL* curl = handle->curl;
  curl_easy_reset(curl);  // keeps the connection
  sink.curl = curl;
  char reason[CURL_ERROR_SIZE] = {};
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
  Spoken spoken;
  set_request(curl, request, access_, &spoken);
  set_limits(curl, options_, &sink);
  const CURLcode code = curl_easy_perform(curl);
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  Try out;
  sink.answer.status = int(status);
  // Seconds; a date is not looked at.
  const std::string retry_after = sink.answer.header("retry-after");
  if (!retry_after.empty() && retry_after.size() < 6 && retry_after.find_first_not_of("0123456789") == std::string::npos)
    out.retry_after_seconds = std::min(std::stod(retry_after), kLongestRetryAfter);
  if (sink.too_much) {
    out.hopeless = true;
    out.failure = request.byte_count > 0 && status == 200 ? "the server answers a range request with the whole object; use a server that knows ranges"
                                                          : "the body is larger than the " + std::to_string(sink.most_bytes) + " bytes that are accepted";
  } else if (code != CURLE_OK) {
    out.failure = reason[0] ? reason : curl_easy_strerror(code);
    out.hopeless = code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_PEER_FAILED_VERIFICATION;
  } else if (may_pass(int(status))) {
    out.failure = "HTTP " + std::to_string(status);
  } else if (request.byte_count > 0 && (status == 206 || status == 200) && int64_t(sink.answer.body.size()) != request.byte_count) {
    out.failure = std::to_string(sink.answer.body.size()) + " of " + std::to_string(request.byte_count) + " bytes came";
  }
  out.answer = std::move(sink.answer);
  std::lock_guard lock(mutex_);
  idle_.push_back(std::move(handle));
  return out;
}

// False when it is closing.
bool HttpClient::pause(int attempt, double retry_after_seconds) const {
  thread_local std::minstd_rand random{std::random_device{}()};
  const double jitter = std::uniform_real_distribution(0.5, 1.5)(random);
  const double seconds = std::max(retry_after_seconds, jitter * std::min(kLongestPause, kFirstPause * double(1 << std::min(attempt, 16))));
  for (const double end = monotonic_seconds() + seconds; monotonic_seconds() < end;) {
    if (options_.closing && options_.closing->load()) return false;
    std::this_thread::sleep_for(std::chrono::duration<double>(std::clamp(end - monotonic_seconds(), 0.0, 0.05)));
  }
  return true;
}

Result<HttpAnswer> HttpClient::send(const HttpRequest& request) const {
  const double begin = monotonic_seconds();
  const std::string what = (request.head ? "HEAD " : "GET ") + printable_url(request.url) +
                           (request.byte_count > 0 ? " (bytes " + std::to_string(request.first_byte) + " to " + std::to_string(request.first_byte + request.byte_count - 1) + ")" : "");
  for (int attempt = 0;; ++attempt) {
    Try made = once(request);
    if (made.failure.empty()) return std::move(made.answer);
    if (made.hopeless) return fail(ErrorCode::kFixData, "[data_loader] " + what + ": " + made.failure);
    const bool closing = options_.closing && options_.closing->load();
    if (attempt >= options_.retries || closing || !pause(attempt, made.retry_after_seconds))
      return fail(ErrorCode::kIo, "[data_loader] " + what + ": " + made.failure + ", after " + std::to_string(attempt + 1) + " tries in " + std::to_string(int64_t(monotonic_seconds() - begin + 0.5)) +
                                      " s; is the server up and reachable from this host? operation.remote.retries says how often to try");
    if (attempt == 0) log_debug("{}: {}; trying again", what, made.failure);
  }
}

std::string status_reason(int status, bool to_s3) {
  const std::string number = "HTTP " + std::to_string(status) + ": ";
  if (status == 404) return number + "there is no such object; check operation.data_path" + (to_s3 ? " and AWS_ENDPOINT_URL" : "");
  if (status == 401 || status == 403) return number + "access is denied; check " + (to_s3 ? "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, and the bucket's policy" : "the URL's user and password");
  if (status == 301 || status == 307) return number + "the bucket is elsewhere; set AWS_REGION or AWS_ENDPOINT_URL";
  if (status == 400 && to_s3) return number + "the store refuses the request; check AWS_REGION and the credentials";
  return number + "the server refuses the request";
}

}  // namespace tessera::data
