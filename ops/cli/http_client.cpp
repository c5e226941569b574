#include "ops/cli/http_client.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <regex>

namespace tessera::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

struct Target {
  std::string host, port, path;
};

std::optional<Target> split_url(const std::string& url) {
  static const std::regex form(R"(http://(\[[0-9a-fA-F:]+\]|[^/:]+)(?::(\d{1,5}))?(/.*)?)");
  std::smatch match;
  if (!std::regex_match(url, match, form)) return std::nullopt;
  std::string host = match[1];
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  return Target{host, match[2].matched ? match[2].str() : "80", match[3].matched ? match[3].str() : "/"};
}

// One request as a chain of callbacks: Beast's deadlines exist for asynchronous calls only.
class Exchange {
 public:
  Exchange(Target target, http::request<http::string_body> request, std::chrono::milliseconds timeout)
      : target_(std::move(target)), request_(std::move(request)), timeout_(timeout) {
    parser_.body_limit(64u << 20);
  }

  Result<HttpReply> run() {
    resolver_.async_resolve(target_.host, target_.port, [this](beast::error_code error, const asio::ip::tcp::resolver::results_type& found) {
      if (failed(error)) return;
      stream_.expires_after(timeout_);
      stream_.async_connect(found, [this](beast::error_code connect_error, const asio::ip::tcp::endpoint&) {
        if (!failed(connect_error)) send();
      });
    });
    io_.run_for(timeout_ + std::chrono::milliseconds(100));
    const std::string where = target_.host + ":" + target_.port;
    if (!done_ && error_.empty()) error_ = "no answer within " + std::to_string(timeout_.count()) + " ms";
    if (!error_.empty()) return fail(ErrorCode::kUnavailable, "no answer from " + where + ": " + error_);
    return HttpReply{int(parser_.get().result_int()), parser_.get().body()};
  }

 private:
  bool failed(beast::error_code error) {
    if (error) error_ = error.message();
    return bool(error);
  }
  void send() {
    http::async_write(stream_, request_, [this](beast::error_code error, size_t) {
      if (failed(error)) return;
      http::async_read(stream_, buffer_, parser_, [this](beast::error_code read_error, size_t) {
        if (!failed(read_error)) done_ = true;
        beast::error_code ignored;
        stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
      });
    });
  }

  Target target_;
  http::request<http::string_body> request_;
  std::chrono::milliseconds timeout_;
  asio::io_context io_;
  asio::ip::tcp::resolver resolver_{io_};
  beast::tcp_stream stream_{io_};
  beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  bool done_ = false;
  std::string error_;
};

Result<HttpReply> call(http::verb verb, const std::string& url, const std::string& token, const std::string& body, std::chrono::milliseconds timeout) {
  auto target = split_url(url);
  if (!target) return fail(ErrorCode::kUsage, "'" + url + "' is no address of a run; write it as http://HOST:PORT");
  http::request<http::string_body> request{verb, target->path, 11};
  request.set(http::field::host, target->host + ":" + target->port);
  request.set(http::field::user_agent, "tessera");
  request.set(http::field::connection, "close");
  if (!token.empty()) request.set(http::field::authorization, "Bearer " + token);
  request.body() = body;
  if (verb == http::verb::post) request.prepare_payload();
  try {
    return Exchange(*target, std::move(request), timeout).run();
  } catch (const std::exception& e) {
    return fail(ErrorCode::kUnavailable, "no answer from " + target->host + ":" + target->port + ": " + e.what());
  }
}

std::string problem_of(const HttpReply& reply) {
  const Json document = Json::parse(reply.body, nullptr, false);
  const std::string status = "HTTP " + std::to_string(reply.status);
  if (!document.is_object()) return status;
  return status + ": " + document.value("detail", document.value("title", "no reason given"));
}

}  // namespace

Result<HttpReply> http_get(const std::string& url, std::chrono::milliseconds timeout) { return call(http::verb::get, url, "", "", timeout); }
Result<HttpReply> http_post(const std::string& url, const std::string& token, const std::string& body, std::chrono::milliseconds timeout) {
  return call(http::verb::post, url, token, body, timeout);
}

Result<Json> get_json(const std::string& url, std::chrono::milliseconds timeout) {
  TESSERA_ASSIGN(const HttpReply reply, http_get(url, timeout));
  if (reply.status != 200) return fail(ErrorCode::kUnavailable, url + " answers " + problem_of(reply));
  Json document = Json::parse(reply.body, nullptr, false);
  if (document.is_discarded()) return fail(ErrorCode::kUnavailable, url + " answers with something that is no JSON; is it a Tessera coordinator?");
  return document;
}

Status post(const std::string& url, const std::string& token, const std::string& body, std::chrono::milliseconds timeout) {
  TESSERA_ASSIGN(const HttpReply reply, http_post(url, token, body, timeout));
  if (reply.status == 401 || reply.status == 403)
    return fail(ErrorCode::kRefused, url + " does not accept the token; it stands in address.json of the run's folder (--token)", exit_codes::kRefused);
  if (reply.status / 100 != 2) return fail(ErrorCode::kUnavailable, url + " answers " + problem_of(reply));
  return {};
}

}  // namespace tessera::cli
