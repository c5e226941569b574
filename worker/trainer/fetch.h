// Pulls tiles from loaders ahead of their use: one thread, one socket per loader, never more pixels asked for than the
// byte budget. Any loader can answer for any tile: a late or broken answer is asked for again elsewhere, a duplicate is
// thrown away, bytes are verified against their hashes. A tile that a loader refuses for good (its copy of a shard is damaged)
// is asked for elsewhere; it is fatal when every loader refuses it. From a loader on this host pixels come by shared memory
// unless the transport is tcp; where that fails, over TCP.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "common/config.h"
#include "common/shared_memory.h"
#include "proto/channel.h"
#include "worker/collective/mesh.h"

namespace tessera::trainer {

struct FetchedTile {
  proto::TileHeader header;
  std::vector<uint8_t> pixels;
};

class Fetcher {
 public:
  // transport: operation.transport.
  Fetcher(const FunctionConfig& function, int64_t budget_bytes, std::string sender, const std::string& transport = "auto");
  ~Fetcher();

  // The loaders to ask; any time. Requests to loaders that are no longer listed are asked elsewhere.
  void set_loaders(const proto::ShardAssignment& assignment);
  // What will be needed: the tiles [tiles.begin, tiles.end) of every step from `first_step` up to `end_step`, in this
  // order. Replaces the previous wish; tiles already here or on the way are kept when they are in it.
  void want(Step first_step, Step end_step, TileRange tiles);
  // One tile more, beside the wish (an audit's); until it is taken or want() is called again.
  void also(Step step, TileIndex tile);
  // The tile, once it is here; it and those before it are not wanted any more. Errors: kRebuildWorld when aborted; kFixData when a loader says that the run must stop
  // (its reason, with the exit code); never times out.
  Result<FetchedTile> take(Step step, TileIndex tile, const collective::AbortSignal& abort);

 private:
  using Key = std::pair<Step, TileIndex>;
  struct Request {
    Key key;
    std::string loader;
    Millis last_progress = 0;
    std::optional<proto::TileHeader> header;
    std::vector<uint8_t> pixels;
    int64_t received_bytes = 0;
    Millis asked = 0;
  };
  struct Loader {
    std::unique_ptr<proto::Client> client;
    std::string address;
    Millis quiet_until = 0;  // no new requests before: it was late or refused
    bool takes_shared = true;  // until a tile of it could not be mapped
    SharedViews views{};
    Millis heard = 0;         // the last message of it
    Millis completed = 0;     // the last whole tile of it
  };

  void run(std::stop_token stop);
  void reconcile_loaders();
  void ask_ahead(Millis now);
  void drop_late(Millis now);
  bool receive_all();
  void on_message(proto::Incoming incoming);
  void on_frame(const proto::TileFrame& frame, const std::string& raw);
  void on_shared(uint64_t id);
  void on_refusal(const proto::TileError& error);
  void release(uint64_t id);
  void complete(uint64_t id);
  void give_up(uint64_t id, const std::string& why);
  bool send_request(const Key& key, Millis now);
  std::optional<Key> next_missing();
  bool wanted(const Key& key) const;
  void drop_unwanted();
  void wait_for_message();
  void wake();

  const FunctionConfig function_;
  const int64_t tile_bytes_;
  const size_t window_;  // tiles that may be held or on the way
  const std::string sender_;
  const std::string shared_host_;  // empty: TCP only

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::optional<proto::ShardAssignment> new_assignment_;
  Key cursor_{0, 0};   // the first tile that is still wanted
  Step end_step_ = 0;
  TileRange tiles_;
  std::set<Key> extra_;
  std::map<Key, FetchedTile> ready_;
  std::optional<Error> fatal_;

  std::map<std::string, Loader> loaders_;     // fetch thread only
  std::map<uint64_t, Request> requests_;      // fetch thread only
  std::map<Key, std::map<std::string, Error>> refusals_;  // fetch thread only: by loader
  uint64_t next_id_ = 1;
  double tile_seconds_ = 0.1;                 // smoothed time that a loader takes for a tile
  int wake_fd_ = -1;
  std::jthread thread_;
};

}  // namespace tessera::trainer
