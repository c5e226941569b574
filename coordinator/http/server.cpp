#include "coordinator/http/server.h"

#include <atomic>
#include <charconv>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <map>
#include <mutex>
#include <openssl/crypto.h>
#include <thread>

#include "common/file.h"
#include "common/version.h"
#include "coordinator/dashboard/page.h"

namespace tessera::coordinator {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;

constexpr int kConnectionsMax = 128;

Response reply(const Request& request, http::status status, const char* type, std::string body) {
  Response out{status, request.version()};
  out.set(http::field::server, std::string("tessera/") + kVersion);
  out.set(http::field::content_type, type);
  out.set(http::field::cache_control, "no-store");
  out.set("X-Content-Type-Options", "nosniff");
  out.set("Content-Security-Policy", "default-src 'self' 'unsafe-inline' data:");
  out.keep_alive(request.keep_alive());
  out.body() = std::move(body);
  out.prepare_payload();
  return out;
}

Response problem(const Request& request, http::status status, const std::string& detail) {
  const nlohmann::json doc{{"type", "about:blank"}, {"title", std::string(http::obsolete_reason(status))}, {"status", int(status)}, {"detail", detail}};
  return reply(request, status, "application/problem+json", doc.dump());
}

bool same_token(const std::string& a, const std::string& b) { return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0; }

// "after=12" of a query; fallback when it is missing, nullopt when it is no number.
std::optional<int64_t> after_of(std::string_view query, int64_t fallback) {
  const size_t at = query.find("after=");
  if (at == std::string_view::npos) return fallback;
  int64_t value = 0;
  const char* begin = query.data() + at + 6;
  const auto [end, error] = std::from_chars(begin, query.data() + query.size(), value);
  return error == std::errc{} && (end == query.data() + query.size() || *end == '&') ? std::optional(value) : std::nullopt;
}

}  // namespace

struct HttpServer::Impl {
  HttpOptions options;
  std::function<void(Command)> on_command;
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  std::atomic<int> connections{0};
  std::mutex mutex;
  std::shared_ptr<const Snapshot> snapshot = std::make_shared<Snapshot>();
  std::jthread thread;

  std::shared_ptr<const Snapshot> current() {
    std::lock_guard lock(mutex);
    return snapshot;
  }

  Response get(const Request& request, std::string_view path, std::string_view query) {
    const auto now = current();
    if (path == "/") return reply(request, http::status::ok, "text/html; charset=utf-8", dashboard_page());
    if (path == "/api/v1/status") return now->status.is_null() ? problem(request, http::status::service_unavailable, "the coordinator is starting") : reply(request, http::status::ok, "application/json", now->status.dump());
    if (path == "/api/v1/checkpoints") return reply(request, http::status::ok, "application/json", now->checkpoints.dump());
    if (path == "/api/v1/events" || path == "/api/v1/metrics") {
      const auto after = after_of(query, -1);
      if (!after) return problem(request, http::status::bad_request, "after must be a whole number");
      return reply(request, http::status::ok, "application/json", path == "/api/v1/events" ? events(*now, *after) : curve(*now, *after));
    }
    if (path == "/metrics") return reply(request, http::status::ok, "text/plain; version=0.0.4; charset=utf-8", now->metrics);
    if (path == "/livez") return reply(request, http::status::ok, "text/plain", "ok\n");
    if (path == "/readyz" || path == "/healthz")
      return now->ready ? reply(request, http::status::ok, "text/plain", "ok\n") : problem(request, http::status::service_unavailable, "no world is running yet");
    if (path == "/version") {
      const nlohmann::json doc{{"schema", 1}, {"version", kVersion}, {"commit", build_commit()}, {"protocol", kProtocolVersion}};
      return reply(request, http::status::ok, "application/json", doc.dump());
    }
    if (path.starts_with("/pictures/")) return picture(request, std::string(path.substr(10)));
    return problem(request, http::status::not_found, "there is nothing at " + std::string(path.substr(0, 200)));
  }

  static std::string events(const Snapshot& now, int64_t after) {
    nlohmann::ordered_json doc{{"schema", 1}, {"events", nlohmann::ordered_json::array()}};
    for (const auto& e : now.events)
      if (e.id > after) doc["events"].push_back({{"id", e.id}, {"time", e.unix_time}, {"severity", e.severity}, {"text", e.text}});
    return doc.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  static std::string curve(const Snapshot& now, int64_t after) {
    nlohmann::ordered_json doc{{"schema", 1}, {"points", nlohmann::ordered_json::array()}};
    for (const auto& p : now.curve)
      if (p.step > after) doc["points"].push_back({{"step", p.step}, {"loss", p.loss}, {"images_per_second", p.images_per_second}, {"effective_rank", p.effective_rank > 0 ? nlohmann::ordered_json(p.effective_rank) : nullptr}, {"lr", p.lr}});
    return doc.dump();
  }

  Response picture(const Request& request, const std::string& name) {
    const bool plain = !name.empty() && name.size() < 100 && name.ends_with(".png") &&
                       name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == std::string::npos && name[0] != '.';
    if (!plain) return problem(request, http::status::not_found, "pictures have plain names that end in .png");
    auto bytes = read_file(options.pictures_folder + "/" + name, int64_t{64} << 20);
    if (!bytes) return problem(request, http::status::not_found, "there is no picture " + name);
    return reply(request, http::status::ok, "image/png", std::move(*bytes));
  }

  static bool read_note(const std::string& body, Command& out) {
    const auto doc = nlohmann::json::parse(body, nullptr, false);
    const auto word = [&](const char* name) { return doc.is_object() && doc.contains(name) && doc[name].is_string() ? doc[name].get<std::string>() : ""; };
    out.severity = word("severity"), out.text = word("text");
    return (out.severity == "info" || out.severity == "warning") && !out.text.empty() && out.text.size() <= 1000;
  }

  Response post(const Request& request, std::string_view path) {
    static const std::map<std::string_view, CommandKind> commands{
        {"/api/v1/stop", CommandKind::kStop}, {"/api/v1/checkpoint", CommandKind::kCheckpoint}, {"/api/v1/pause", CommandKind::kPause}, {"/api/v1/resume", CommandKind::kResume}, {"/api/v1/note", CommandKind::kNote}};
    const auto command = commands.find(path);
    if (command == commands.end()) return problem(request, http::status::not_found, "there is nothing to post to at " + std::string(path.substr(0, 200)));
    const std::string given(request[http::field::authorization]);
    if (!same_token(given, "Bearer " + options.token))
      return problem(request, http::status::unauthorized, "commands need `Authorization: Bearer TOKEN`; the token is in the run's address.json");
    Command asked{command->second, "", ""};
    if (asked.kind == CommandKind::kNote && !read_note(request.body(), asked))
      return problem(request, http::status::bad_request, "a note is {\"severity\": \"info\" or \"warning\", \"text\": 1 to 1000 characters}");
    on_command(asked);
    return reply(request, http::status::accepted, "application/json", "{\"schema\":1,\"accepted\":true}");
  }

  Response handle(const Request& request) {
    const std::string_view target(request.target().data(), request.target().size());
    const size_t question = target.find('?');
    const std::string_view path = target.substr(0, question), query = question == std::string_view::npos ? std::string_view() : target.substr(question + 1);
    if (request.method() == http::verb::get || request.method() == http::verb::head) return get(request, path, query);
    if (request.method() == http::verb::post) return post(request, path);
    return problem(request, http::status::method_not_allowed, "GET, HEAD and POST are understood");
  }

  asio::awaitable<void> session(tcp::socket socket) {
    struct Count {
      std::atomic<int>& n;
      explicit Count(std::atomic<int>& count) : n(count) { ++n; }
      ~Count() { --n; }
    } count(connections);
    beast::tcp_stream stream(std::move(socket));
    beast::flat_buffer buffer(16384);
    try {
      for (;;) {
        stream.expires_after(std::chrono::seconds(10));
        http::request_parser<http::string_body> parser;
        parser.header_limit(8192);
        parser.body_limit(65536);
        co_await http::async_read(stream, buffer, parser, asio::use_awaitable);
        const Request request = parser.release();
        Response response = handle(request);
        const bool keep = response.keep_alive();
        if (request.method() == http::verb::head) {
          http::response<http::empty_body> head{response.result(), response.version()};
          for (const auto& field : response) head.set(field.name_string(), field.value());
          co_await http::async_write(stream, head, asio::use_awaitable);
        } else {
          co_await http::async_write(stream, response, asio::use_awaitable);
        }
        if (!keep) break;
      }
    } catch (const boost::system::system_error&) {  // the peer is gone, too slow, or speaks no HTTP: its connection ends
    }
    beast::error_code ignored;
    stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
  }

  asio::awaitable<void> accept() {
    for (;;) {
      beast::error_code error;
      tcp::socket socket = co_await acceptor.async_accept(asio::redirect_error(asio::use_awaitable, error));
      if (error == asio::error::operation_aborted) co_return;
      if (error || connections >= kConnectionsMax) continue;
      asio::co_spawn(io, session(std::move(socket)), asio::detached);
    }
  }
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() {
  impl_->io.stop();
  if (impl_->thread.joinable()) impl_->thread.join();
}
int HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }
void HttpServer::publish(std::shared_ptr<const Snapshot> snapshot) {
  std::lock_guard lock(impl_->mutex);
  impl_->snapshot = std::move(snapshot);
}

Result<std::unique_ptr<HttpServer>> HttpServer::start(HttpOptions options, std::function<void(Command)> on_command) {
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  impl->on_command = std::move(on_command);
  beast::error_code error;
  const auto address = asio::ip::make_address(impl->options.bind, error);
  if (error) return fail(ErrorCode::kFixConfig, "[http] operation.http.bind '" + impl->options.bind + "' is no IP address");
  const tcp::endpoint endpoint(address, uint16_t(impl->options.port));
  impl->acceptor.open(endpoint.protocol(), error);
  if (!error) impl->acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) impl->acceptor.bind(endpoint, error);
  if (!error) impl->acceptor.listen(asio::socket_base::max_listen_connections, error);
  const std::string where = std::to_string(impl->options.port) + " of " + impl->options.bind;
  if (error == asio::error::address_in_use) return fail(ErrorCode::kIo, "[http] port " + where + " is in use; set operation.http.port to another, or to 0 for a free one");
  if (error) return fail(ErrorCode::kFixConfig, "[http] cannot listen on port " + where + ": " + error.message() + "; set operation.http.bind to an address of this host");
  asio::co_spawn(impl->io, impl->accept(), asio::detached);
  impl->thread = std::jthread([raw = impl.get()] { raw->io.run(); });
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

}  // namespace tessera::coordinator
