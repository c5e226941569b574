// A loader and a coordinator for the trainer's tests: small, real sockets, and they can misbehave.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/config.h"
#include "proto/channel.h"
#include "worker/trainer/fetch.h"
#include "worker/trainer/trainer.h"

namespace tessera::trainer::test {

FunctionConfig tiny_function(const std::string& more = "");
OperationConfig tiny_operation(const std::string& more = "");

// The one tile of (step, tile), whoever asks: pixels and masks from a hash.
FetchedTile make_tile(const FunctionConfig& function, Step step, TileIndex tile);

// Serves make_tile over a ROUTER on its own thread.
class FakeLoader {
 public:
  struct Behaviour {
    std::atomic<bool> silent{false};
    std::atomic<int> damage_pixels{0};   // so many answers with one flipped pixel bit
    std::atomic<int> damage_header{0};   // so many answers with a header of another tile size
    std::atomic<int> errors{0};          // so many TileErrors that ask for another try
    std::atomic<int> fatal_code{0};      // TileError with this exit code to everything
    std::atomic<int> stop_in_middle{0};  // so many answers that end after the first frame
    std::atomic<int> share_nothing{0};   // so many answers by a shared memory that is not there
    std::atomic<int> delay_ms{0};        // before each answer
    std::atomic<int> duplicate{0};       // so many answers sent twice
  };
  explicit FakeLoader(const FunctionConfig& function, std::string name = "loader");
  ~FakeLoader();
  proto::LoaderShare share() const;
  int requests() const { return requests_; }
  int requests_of(Step step, TileIndex tile) const;
  Behaviour behave;

 private:
  void run(std::stop_token stop);
  void answer(proto::Server& server, const std::string& peer, const proto::TileRequest& request);
  FunctionConfig function_;
  std::string name_;
  proto::Server server_;
  int port_;
  std::atomic<int> requests_{0};
  mutable std::mutex mutex_;
  std::map<std::pair<Step, TileIndex>, int> asked_;
  std::jthread thread_;
};

// One trainer with its threads, in this process.
class TestTrainer {
 public:
  TestTrainer(const std::string& worker_id, int coordinator_port, TrainerOptions options = {});
  ~TestTrainer();
  // Exit code, once run() returned; -1 before.
  int exit_code() const { return exit_code_; }

 private:
  collective::AbortSignal abort_;
  std::unique_ptr<collective::MeshListener> listener_;
  std::unique_ptr<ControlLink> link_;
  std::unique_ptr<Trainer> trainer_;
  std::atomic<int> exit_code_{-1};
  std::jthread thread_;
};

// Keeps what the trainers say and sends what the test decides; the test's thread pumps it.
class FakeCoordinator {
 public:
  explicit FakeCoordinator(const FunctionConfig& function, const OperationConfig& operation, const std::string& checkpoint_root, int port = 0);
  int port() const { return server_->port(); }
  // Handles messages until the condition holds. False: not within the deadline.
  bool pump(const std::function<bool()>& condition, Millis deadline_ms = 30000);
  bool await_ready(size_t count);
  // Sends WorldStart to the named workers, by rank; generation {1, next number} unless set in `start`.
  proto::WorldStart start_world(const std::vector<WorkerId>& workers, proto::WorldStart start = {});
  void stop_world(const Generation& generation, const std::vector<WorkerId>& workers);
  void send(const WorkerId& worker, const proto::Payload& payload);
  void shut_down(int exit_code = 0);
  bool all_sealed(const Generation& generation, size_t count) const;

  std::vector<proto::LoaderShare> loaders;
  std::map<WorkerId, proto::TrainerHello> hellos;
  std::map<WorkerId, uint64_t> incarnations;
  std::map<WorkerId, int> ready;
  std::map<Step, std::vector<proto::StepDone>> ledger;
  std::map<Generation, std::map<WorkerId, proto::WorldStarted>> started;
  std::map<Generation, std::map<WorkerId, proto::Sealed>> sealed;
  std::map<WorkerId, proto::WorldFault> faults;
  std::map<WorkerId, proto::Goodbye> goodbyes;
  std::map<WorkerId, proto::TrainerStatus> statuses;
  std::map<std::string, std::map<Rank, proto::CheckpointFile>> attempts;
  std::map<Step, std::string> checkpoints;  // published folders
  std::vector<std::string> checkpoint_failures;
  bool acknowledge = true;
  std::function<bool(const proto::CheckpointFile&)> drop_file;  // true: as if the message had never come
  int dropped_files = 0;

 private:
  void handle(const proto::Incoming& incoming);
  void welcome(const std::string& peer);
  void on_checkpoint_file(const proto::CheckpointFile& file);
  FunctionConfig function_;
  OperationConfig operation_;
  std::string checkpoint_root_;
  std::unique_ptr<proto::Server> server_;
  std::map<WorkerId, std::string> peers_;
  uint64_t next_number_ = 1;
};

}  // namespace tessera::trainer::test
