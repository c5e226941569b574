// The status endpoint: HTTP on Boost.Beast in a thread of its own. It reads immutable snapshots and hands commands to the
// loop thread; it never waits for training, and training never for it.
//
// GET  /                     the page            GET /pictures/NAME.png    pictures of the run
// GET  /api/v1/status        INTERFACES.md       GET /api/v1/events?after=N
// GET  /api/v1/checkpoints                       GET /api/v1/metrics?after=STEP   points of the loss curve
// GET  /livez /readyz /healthz /version /metrics
// POST /api/v1/stop, /checkpoint, /pause, /resume (below /api/v1)   with Authorization: Bearer <token of address.json>
// POST /api/v1/note          {"severity": "info" or "warning", "text": 1 to 1000 characters}: an event of the run, a warning also an alert; token as above
// Errors: application/problem+json (RFC 9457). Limits: 8 KiB header, 64 KiB body, 10 s a request, 128 connections.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/result.h"
#include "coordinator/status.h"

namespace tessera::coordinator {

struct HttpOptions {
  std::string bind;
  int port = 0;
  std::string token;
  std::string pictures_folder;
};

class HttpServer {
 public:
  enum class CommandKind { kStop, kCheckpoint, kPause, kResume, kNote };
  struct Command {
    CommandKind kind = CommandKind::kStop;
    std::string severity, text;  // of a note
  };
  // Error: kIo "port 8080 of 127.0.0.1 is in use; set operation.http.port ..."; kFixConfig for an address that is not ours.
  static Result<std::unique_ptr<HttpServer>> start(HttpOptions options, std::function<void(Command)> on_command);
  ~HttpServer();
  int port() const;
  void publish(std::shared_ptr<const Snapshot> snapshot);  // any thread

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::coordinator
