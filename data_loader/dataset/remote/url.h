// Paths of remote data: "http://HOST/...", "https://HOST/..." and "s3://BUCKET/KEY". Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace tessera::data {

bool is_remote_path(std::string_view path);
bool is_s3_path(std::string_view path);

// RFC 3986: everything but letters, digits, "-._~" (and "/" when keep_slash) as %XX, which is also what Amazon's signature
// wants of a path and of a query's values.
std::string percent_encode(std::string_view text, bool keep_slash);
// "%41" and "+" (a space). What is no escape stays.
std::string percent_decode(std::string_view text);

// "train-{000..002}.tar" -> train-000.tar, train-001.tar, train-002.tar; several braces multiply. Text without braces is
// itself. Errors: kFixConfig (malformed, falling, more than a million).
Result<std::vector<std::string>> expand_braces(const std::string& text);

// For sentences and logs: without "user:password@" and without a query.
std::string printable_url(const std::string& url);

}  // namespace tessera::data
