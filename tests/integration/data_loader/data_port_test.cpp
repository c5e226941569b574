// The data port over real sockets, in this process: same bytes for any threads and loaders, credit, slow and dead trainers,
// damaged shards.
#include "data_loader/server/data_port.h"

#include <thread>

#include "tests/integration/data_loader/tile_client.h"
#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

class DataPortTest : public testing::Test {
 protected:
  void SetUp() override {
    function_.model.patch_size = 8, function_.model.image_size = 64;
    function_.batch.tile_size = 8, function_.batch.tiles = 3;
    function_.masks.min_keep = 4;
    ScenesOptions scenes;
    scenes.count = 60, scenes.size = 48, scenes.shard_size = 25, scenes.threads = 2;
    ASSERT_TRUE(make_scenes(folder_ / "d", scenes));
    dataset_ = open();
  }
  std::shared_ptr<const Dataset> open() {
    OpenOptions options;
    options.data_path = folder_ / "d";
    auto dataset = open_dataset(options);
    EXPECT_TRUE(dataset) << (dataset ? "" : dataset.error().message);
    return *dataset;
  }
  std::unique_ptr<DataPort> port(int threads, QueueLimits limits = {}) {
    DataPortOptions options;
    options.name = "loader";
    options.limits = limits;
    auto started = DataPort::start(options);
    EXPECT_TRUE(started) << (started ? "" : started.error().message);
    (*started)->serve(dataset_, function_, threads);
    return std::move(*started);
  }
  static std::string address(const DataPort& port) { return "127.0.0.1:" + std::to_string(port.port()); }
  int64_t tile_bytes() const { return tile_pixel_bytes(function_); }

  TemporaryFolder folder_;
  FunctionConfig function_;
  std::shared_ptr<const Dataset> dataset_;
};

TEST_F(DataPortTest, SameTilesForAnyThreadsAndLoaders) {
  std::map<std::pair<Step, TileIndex>, Hash128> expected;
  TileMaker maker = std::move(*TileMaker::create(dataset_, function_));
  for (Step step = 0; step < 5; ++step)
    for (TileIndex tile = 0; tile < 3; ++tile) expected[{step, tile}] = maker.make(step, tile)->header.digest;
  for (const int threads : {1, 2, 4}) {
    const auto first = port(threads), second = port(threads);
    TileClient clients[2] = {TileClient(address(*first)), TileClient(address(*second))};
    std::map<std::pair<Step, TileIndex>, std::pair<int, uint64_t>> asked;
    for (const auto& [place, digest] : expected) {
      const int which = int(place.first + place.second) % 2;
      asked[place] = {which, clients[which].ask(place.first, place.second, tile_bytes())};
    }
    for (const auto& [place, request] : asked) {
      const Received got = clients[request.first].take(request.second);
      ASSERT_TRUE(got.header);
      EXPECT_EQ(got.header->digest, expected[place]) << threads << " threads, step " << place.first << " tile " << place.second;
    }
    EXPECT_EQ(first->status().images_total + second->status().images_total, 15 * 8);
    EXPECT_GT(first->status().decode_seconds, 0);
  }
}

TEST_F(DataPortTest, NoMoreBytesThanCredit) {
  const auto port = this->port(2);
  TileClient client(address(*port));
  const Received refused = client.take(client.ask(0, 0, tile_bytes() - 1));
  ASSERT_TRUE(refused.error);
  EXPECT_EQ(refused.bytes, 0);
  EXPECT_EQ(refused.error->exit_code, exit_codes::kConfig);
  EXPECT_NE(refused.error->reason.find(std::to_string(tile_bytes())), std::string::npos);
  const Received whole = client.take(client.ask(0, 0, tile_bytes()));
  EXPECT_EQ(whole.bytes, tile_bytes());
}

TEST_F(DataPortTest, LargeTilesTravelInFrames) {
  function_.model.image_size = 256;
  const auto port = this->port(1);
  TileClient client(address(*port));
  const Received got = client.take(client.ask(0, 2, tile_bytes()));
  EXPECT_EQ(got.frames, 2);
  EXPECT_EQ(got.bytes, 8 * 256 * 256 * 3);
}

// A trainer that asks for 300 MB and takes nothing: a bounded part is made, others are served, a cancel frees the rest.
TEST_F(DataPortTest, ASlowTrainerNeverMakesTheLoaderGrow) {
  function_.model.image_size = 256;
  QueueLimits limits;
  limits.unsent_bytes_per_peer = 6 << 20;
  const auto port = this->port(2, limits);
  std::vector<uint64_t> ids;
  TileClient slow(address(*port), 1);
  for (int i = 0; i < 200; ++i) ids.push_back(slow.ask(i / 3, i % 3, tile_bytes()));
  int64_t made = -1;
  for (Millis end = monotonic_ms() + 10'000; monotonic_ms() < end;) {
    const int64_t now = port->status().images_total;
    if (now == made && now > 0) break;
    made = now;
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  EXPECT_LT(made / 8, 60) << "tiles made for a trainer that takes nothing; 200 were asked for";
  TileClient other(address(*port));
  EXPECT_TRUE(other.take(other.ask(0, 0, tile_bytes())).header);
  for (size_t i = 1; i < ids.size(); ++i) slow.cancel(ids[i]);
  EXPECT_TRUE(slow.take(ids[0]).header);
  for (Millis end = monotonic_ms() + 10'000; monotonic_ms() < end && port->status().queue > 0;) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(port->status().queue, 0);
}

TEST_F(DataPortTest, SharedMemoryBringsTheSameTiles) {
  const auto port = this->port(2);
  TileClient over_tcp(address(*port)), shared(address(*port), 1000, host_identity()), elsewhere(address(*port), 1000, "another host");
  for (Step step = 0; step < 3; ++step) {
    const Received by_frames = over_tcp.take(over_tcp.ask(step, 1, tile_bytes())), by_memory = shared.take(shared.ask(step, 1, tile_bytes()));
    EXPECT_EQ(by_frames.header->digest, by_memory.header->digest);
    EXPECT_EQ(by_frames.pixels, by_memory.pixels);
    EXPECT_NE(by_memory.header->shared.pid, 0);
    EXPECT_EQ(by_frames.header->shared.pid, 0);
    EXPECT_EQ(elsewhere.take(elsewhere.ask(step, 1, tile_bytes())).header->shared.pid, 0);
  }
  EXPECT_EQ(port->status().shared_tiles, 3);
}

// A trainer that keeps what it got, or died: its slots are bounded, and come back when it lets go.
TEST_F(DataPortTest, SlotsAreBoundedAndComeBack) {
  QueueLimits limits;
  limits.unsent_bytes_per_peer = 4 * tile_bytes();
  const auto port = this->port(2, limits);
  TileClient keeps(address(*port), 1000, host_identity());
  keeps.set_release(false);
  std::vector<uint64_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(keeps.ask(i / 3, i % 3, tile_bytes()));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(keeps.take(ids[size_t(i)]).header);
  const auto settled = [&](int64_t wanted) {
    for (Millis end = monotonic_ms() + 5000; monotonic_ms() < end && port->status().unsent_bytes != wanted;) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return port->status().unsent_bytes == wanted;
  };
  EXPECT_TRUE(settled(4 * tile_bytes())) << port->status().unsent_bytes;
  EXPECT_EQ(port->status().shared_tiles, 4) << "40 were asked for";
  for (Millis end = monotonic_ms() + 5000; monotonic_ms() < end && port->status().blocked_seconds == 0;) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_GT(port->status().blocked_seconds, 0) << "the loader waits for the trainer";
  for (const uint64_t id : ids) keeps.cancel(id);
  EXPECT_TRUE(settled(0));
  TileClient other(address(*port), 1000, host_identity());
  EXPECT_TRUE(other.take(other.ask(0, 0, tile_bytes())).header);
}

TEST_F(DataPortTest, ATrainerThatIsGoneIsForgotten) {
  function_.model.image_size = 256;
  const auto port = this->port(1);
  {
    TileClient gone(address(*port), 1);
    for (int i = 0; i < 60; ++i) gone.ask(i / 3, i % 3, tile_bytes());
    gone.take(1);
  }
  for (Millis end = monotonic_ms() + 10'000; monotonic_ms() < end && port->status().queue > 0;) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(port->status().queue, 0);
}

TEST_F(DataPortTest, AFlippedByteInAShardIsRefusedWithKeyAndByte) {
  const SampleId victim = 30;
  const StoredSample stored = dataset_->manifest->stored(victim);
  const std::string shard = dataset_->path_of(stored.file);
  std::string bytes = *read_file(shard);
  bytes[size_t(stored.offset + stored.size / 2)] ^= 4;
  write_test_file(shard, bytes);
  const auto port = this->port(2);
  TileClient client(address(*port));
  int refused = 0;
  for (Step step = 0; step < 2; ++step)
    for (TileIndex tile = 0; tile < 3; ++tile) {
      const Received got = client.take(client.ask(step, tile, tile_bytes()));
      if (!got.error) continue;
      ++refused;
      EXPECT_EQ(got.error->exit_code, exit_codes::kDataCorrupt);
      for (const std::string& word : {std::string("scenes-000001.tar"), std::string("'00000030'"), "byte " + std::to_string(stored.offset)})
        EXPECT_NE(got.error->reason.find(word), std::string::npos) << got.error->reason;
    }
  EXPECT_LE(refused, 1) << "60 samples are 2 steps of 24 and a tail of 12";
  const auto direct = client.call<proto::TileError>(proto::SampleRequest{900, {victim}, 32});
  ASSERT_TRUE(direct);
  EXPECT_EQ(direct->first.request_id, 900u);
}

TEST_F(DataPortTest, WholeImagesAndWhatTheDatasetIs) {
  const auto port = this->port(1);
  TileClient client(address(*port));
  const auto info = client.call<proto::DatasetInfo>(proto::DatasetRequest{});
  ASSERT_TRUE(info);
  EXPECT_EQ(info->first.manifest_digest, dataset_->manifest->digest());
  EXPECT_EQ(info->first.sample_count, 60);
  EXPECT_EQ(info->first.label_names, (std::vector<std::string>{"class", "count", "distance"}));
  EXPECT_EQ(info->first.class_names.size(), 6u);
  const auto samples = client.call<proto::SampleTile>(proto::SampleRequest{1, {5, 59, 0}, 48});
  ASSERT_TRUE(samples);
  EXPECT_EQ(samples->second.size(), size_t(3 * 48 * 48 * 3));
  EXPECT_EQ(samples->first.pixel_hash, hash_bytes(samples->second));
  EXPECT_EQ(samples->first.keys[1], "00000059");
  EXPECT_EQ(samples->first.labels.size(), 9u);
  EXPECT_EQ(samples->first.labels[3], dataset_->manifest->labels(59)[0]);
}

TEST_F(DataPortTest, AnswersBeforeItServes) {
  DataPortOptions options;
  auto port = DataPort::start(options);
  ASSERT_TRUE(port);
  TileClient client(address(**port));
  const Received early = client.take(client.ask(0, 0, tile_bytes()));
  ASSERT_TRUE(early.error);
  EXPECT_EQ(early.error->exit_code, 0) << "the trainer asks again";
  (*port)->serve(dataset_, function_, 1);
  EXPECT_TRUE(client.take(client.ask(0, 0, tile_bytes())).header);
}

TEST_F(DataPortTest, APortInUseIsSaidSo) {
  const auto first = port(1);
  DataPortOptions options;
  options.port = first->port();
  const auto second = DataPort::start(options);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find(std::to_string(first->port())), std::string::npos);
}

}  // namespace
}  // namespace tessera::data
