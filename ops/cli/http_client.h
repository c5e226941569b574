// A small HTTP client for the coordinator's status endpoint. Every call has a deadline.
#pragma once

#include <chrono>
#include <string>

#include "common/result.h"
#include "ops/cli/output.h"

namespace tessera::cli {

struct HttpReply {
  int status = 0;
  std::string body;
};

// url: "http://host:port/path?query". Errors: kUsage (not such a URL), kUnavailable (no connection, no answer in time, or
// an answer above 64 MiB), naming host and cause.
Result<HttpReply> http_get(const std::string& url, std::chrono::milliseconds timeout);
// With the bearer token. body: JSON, or empty.
Result<HttpReply> http_post(const std::string& url, const std::string& token, const std::string& body, std::chrono::milliseconds timeout);

// GET and parse. Also kUnavailable when the answer is no JSON or a problem document, with its title and detail.
Result<Json> get_json(const std::string& url, std::chrono::milliseconds timeout = std::chrono::seconds(5));
// POST. kRefused with exit code 77 when the token is not accepted.
Status post(const std::string& url, const std::string& token, const std::string& body = "", std::chrono::milliseconds timeout = std::chrono::seconds(5));

}  // namespace tessera::cli
