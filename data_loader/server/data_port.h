// The data side of a loader: a ROUTER that trainers and tessera-model ask, and the worker threads that make the answers.
//
// One loop thread owns the socket and the request queue; workers own a TileMaker each. Between them: a bounded mailbox of
// work, a mailbox of answers with an eventfd that ends the loop's wait. Answers are pure, so threads and order of arrival
// never change a byte. Memory is bounded by the queue's limits (request_queue.h) plus what ZeroMQ holds per peer
// (kFramesInFlight frames). A request's credit covers its whole tile, or it is refused.
//
// A trainer on this host that says so gets its tiles by shared memory: they are made in slots (shared_slots.h), the header
// tells where, and the slot is free again when the trainer cancels the request (it has copied the pixels), is silent for
// the queue's stalled_ms, or is forgotten. Slots count as unsent bytes until then.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "common/config.h"
#include "common/result.h"
#include "data_loader/dataset/dataset.h"
#include "data_loader/server/request_queue.h"
#include "data_loader/server/shared_slots.h"
#include "data_loader/server/tile_maker.h"
#include "proto/channel.h"

namespace tessera::data {

struct DataPortOptions {
  std::string bind = "127.0.0.1";
  int port = 0;  // 0: any free one
  std::string name;  // sender in envelopes
  QueueLimits limits;
};

class DataPort {
 public:
  static constexpr int kFramesInFlight = 16;

  // Binds and starts the loop; until serve() every request is answered with "still being opened". Error: kIo, kFixConfig.
  static Result<std::unique_ptr<DataPort>> start(DataPortOptions options);
  ~DataPort();
  DataPort(const DataPort&) = delete;
  DataPort& operator=(const DataPort&) = delete;

  int port() const { return port_; }
  // What requests are answered from now on, and by at least how many worker threads. Call from one thread.
  void serve(std::shared_ptr<const Dataset> dataset, const FunctionConfig& function, int threads, const std::string& run_id = "");
  // From any thread. images_per_second is left to the caller.
  proto::LoaderStatus status() const;

 private:
  struct Served {
    std::shared_ptr<const Dataset> dataset;
    FunctionConfig function;
    std::string run_id;
  };
  struct Message {
    proto::Payload payload;
    proto::RawPart raw;
  };
  struct Answer {
    std::string peer;
    uint64_t ticket = 0;
    std::deque<Message> messages;
    std::shared_ptr<SharedBuffer> slot;  // of a tile that goes by shared memory
  };
  struct Worker {
    std::optional<TileMaker> maker;
    std::shared_ptr<const Served> made_for;
  };

  DataPort(DataPortOptions options, proto::Server server);
  void loop(std::stop_token stop);
  void on_message(proto::Incoming incoming);
  void on_request(const std::string& peer, Request request);
  void hand_out();
  void collect();
  bool send_ready();
  bool send_answer(Answer& answer);
  void refuse(const std::string& peer, uint64_t id, const std::string& why, int exit_code);

  void work(std::stop_token stop);
  std::deque<Message> answer(Worker& worker, const Request& request, std::shared_ptr<SharedBuffer>* slot);
  std::shared_ptr<SharedBuffer> slot_for(const proto::TileRequest& request, const FunctionConfig& function);
  void free_slots();
  Result<TileMaker*> maker_of(Worker& worker);
  static std::deque<Message> as_messages(MadeTile tile, uint64_t id);
  void note(const StageSeconds& before, const StageSeconds& after, double waited);
  void note_tile(const MadeTile& tile);
  std::shared_ptr<const Served> served() const;

  const DataPortOptions options_;
  proto::Server server_;  // the loop thread's
  int port_ = 0;
  int answers_fd_ = -1;
  RequestQueue queue_;          // the loop thread's
  std::deque<Answer> ready_;    // the loop thread's
  std::map<std::pair<std::string, uint64_t>, std::shared_ptr<SharedBuffer>> held_;  // the loop thread's: by peer and ticket
  std::string run_id_;          // the loop thread's: what the server's envelopes carry

  mutable std::mutex mutex_;    // guards the two mailboxes, what is served, the metrics
  std::condition_variable_any has_work_;
  std::deque<Work> work_;       // at most one per worker beyond what they hold
  std::deque<Answer> answers_;  // at most as many as started requests
  std::shared_ptr<const Served> served_;
  proto::LoaderStatus status_;
  std::set<SampleId> bad_;
  bool held_up_ = false;        // requests wait and workers too: what is unsent has reached its limit
  double looked_ = 0;           // when that was last found out

  SharedSlots slots_;

  std::atomic<size_t> worker_count_{0};
  std::vector<std::jthread> workers_;  // of the thread that calls serve()
  std::jthread loop_;
};

}  // namespace tessera::data
