// GET and HEAD over HTTP(S) with retries, through libcurl; requests to S3 are signed by it (AWS signature 4).
//
// What may pass (a connection that breaks or stalls, half a body, 408, 429, 500, 502, 503, 504) is tried again after a
// pause that doubles from 0.1 s to 5 s, times a random factor of 0.5 to 1.5 so that many loaders do not come at once, or
// for as long as Retry-After says, up to 30 s. No bit of a batch depends on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/result.h"

namespace tessera::data {

// Of requests to S3; from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION (or AWS_DEFAULT_REGION,
// else us-east-1). Without keys requests go unsigned, which public buckets take.
struct S3Access {
  std::string key_id, secret, token, region, endpoint;
  static S3Access from_environment();  // endpoint: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else Amazon's of the region
};

struct HttpOptions {
  int retries = 8;
  int stall_seconds = 20;                       // under 1 kB/s for so long: failed
  std::shared_ptr<std::atomic<bool>> closing;   // set: every request ends at once with an error; may be null
};

struct HttpRequest {
  std::string url;
  bool head = false;
  int64_t first_byte = 0, byte_count = 0;       // a range, when byte_count > 0
  int64_t most_bytes = int64_t{64} << 20;       // of the body; more is an error
  std::vector<std::string> headers;             // "Name: value"
  bool to_s3 = false;                           // signed
};

struct HttpAnswer {
  int status = 0;
  std::string body;
  std::map<std::string, std::string> headers;   // names in lower case
  std::string header(const std::string& name) const;
};

// Any number of threads may use one; connections are kept.
class HttpClient {
 public:
  HttpClient(HttpOptions options, S3Access access);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // The answer, whatever its status, once it is none that may pass. A range is answered by exactly its bytes (206, or 200
  // when it is the whole object). Errors: kIo, all tries failed, with URL, last status or cause, tries and seconds;
  // kFixData, the server does not know ranges or sends too much.
  Result<HttpAnswer> send(const HttpRequest& request) const;

  const S3Access& s3() const { return access_; }
  // Requests made so far, tries counted.
  int64_t tries() const { return tries_.load(); }

 private:
  struct Handle;
  struct Try;
  std::unique_ptr<Handle> take_handle() const;
  Try once(const HttpRequest& request) const;
  bool pause(int attempt, double retry_after_seconds) const;

  const HttpOptions options_;
  const S3Access access_;
  mutable std::atomic<int64_t> tries_{0};
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Handle>> idle_;
};

// Why an answer of this status is of no use and what to do, as the end of a sentence: "HTTP 404: ...".
std::string status_reason(int status, bool to_s3);

}  // namespace tessera::data
