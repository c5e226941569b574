#include "data_loader/dataset/remote/url.h"

#include <charconv>

namespace tessera::data {
namespace {

constexpr size_t kMostNames = 1'000'000;

bool is_unreserved(char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~'; }

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

bool number(std::string_view text, int64_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc{} && end == text.data() + text.size() && *value >= 0;
}

}  // namespace

bool is_s3_path(std::string_view path) { return path.starts_with("s3://"); }
bool is_remote_path(std::string_view path) { return is_s3_path(path) || path.starts_with("http://") || path.starts_with("https://"); }

std::string percent_encode(std::string_view text, bool keep_slash) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (is_unreserved(c) || (keep_slash && c == '/')) out += c;
    else out += '%', out += kHex[byte >> 4], out += kHex[byte & 15];
  }
  return out;
}

std::string percent_decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const int high = text[i] == '%' && i + 2 < text.size() ? hex_value(text[i + 1]) : -1, low = high >= 0 ? hex_value(text[i + 2]) : -1;
    if (low >= 0) out += char(high << 4 | low), i += 2;
    else out += text[i] == '+' ? ' ' : text[i];
  }
  return out;
}

Result<std::vector<std::string>> expand_braces(const std::string& text) {
  const size_t open = text.find('{');
  if (open == std::string::npos) return std::vector{text};
  const size_t close = text.find('}', open), dots = text.find("..", open);
  const auto bad = [&](const std::string& why) { return fail(ErrorCode::kFixConfig, "[data_loader] " + text + ": " + why + "; write a range of shards as {000..099}"); };
  if (close == std::string::npos || dots == std::string::npos || dots > close) return bad("the braces hold no range");
  const std::string first = text.substr(open + 1, dots - open - 1), last = text.substr(dots + 2, close - dots - 2);
  int64_t from = 0, to = 0;
  if (!number(first, &from) || !number(last, &to)) return bad("'" + first + "' or '" + last + "' is no number");
  if (from > to) return bad("the range falls");
  TESSERA_ASSIGN(const auto tails, expand_braces(text.substr(close + 1)));
  if (uint64_t(to - from) >= kMostNames || size_t(to - from + 1) * tails.size() > kMostNames) return bad("that is more than a million names");
  std::vector<std::string> out;
  for (int64_t i = from; i <= to; ++i) {
    std::string digits = std::to_string(i);
    if (digits.size() < first.size()) digits.insert(0, first.size() - digits.size(), '0');
    for (const std::string& tail : tails) out.push_back(text.substr(0, open) + digits + tail);
  }
  return out;
}

std::string printable_url(const std::string& url) {
  std::string out = url.substr(0, url.find('?'));
  const size_t host = out.find("://");
  const size_t begin = host == std::string::npos ? 0 : host + 3, end = std::min(out.find('/', begin), out.size());
  if (const size_t at = out.rfind('@', end); at != std::string::npos && at >= begin && at < end) out.erase(begin, at + 1 - begin);
  return out;
}

}  // namespace tessera::data
