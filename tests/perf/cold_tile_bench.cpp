// How long a loader takes from nothing to its first tile, at any position of a large dataset. Measured, never asserted.
//
//   cold_tile_bench [samples of the manifest, default 1281167] [samples of the order, default 1000000000] [threads of --standalone]
//
// The dataset is synthetic: as many keys as asked for, a hundred to a shard of 1,000 shards' worth of blocks, all of whose
// bytes are one 224-pixel scene in one tar, read, hashed, decoded, cropped and resized each time.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/process.h"
#include "common/shared_memory.h"
#include "data_loader/dataset/index.h"
#include "data_loader/dataset/source.h"
#include "data_loader/server/tile_maker.h"
#include "proto/channel.h"
#include "tests/unit/data_loader/dataset_files.h"

namespace tessera::data {
namespace {

constexpr int kPlaces = 25;

FunctionConfig function_of(const char* shuffle) {
  return *parse_function("function:\n  seed: 3\n  model: {name: vit_tiny}\n  masks: {min_keep: 4}\n  batch: {tile_size: 32, tiles: 8}\n  data: {shuffle: " + std::string(shuffle) + "}\n");
}

struct Spread {
  std::vector<double> seconds;
  void print(const std::string& what) {
    std::sort(seconds.begin(), seconds.end());
    std::printf("%-82s median %6.1f ms, worst %6.1f ms of %zu\n", what.c_str(), seconds[seconds.size() / 2] * 1e3, seconds.back() * 1e3, seconds.size());
  }
};

// A manifest of `count` samples beside a tar with one image.
void make_large(const std::string& folder, int64_t count) {
  ScenesOptions one;
  one.count = 1, one.size = 224;
  (void)make_scenes(folder, one);
  OpenOptions open;
  open.data_path = folder;
  const auto small = *open_dataset(open);
  const StoredSample stored = small->manifest->stored(0);
  ManifestDraft draft;
  const Source source = *find_source(folder);
  draft.kind = source.kind, draft.source = source.source, draft.files = source.files;
  draft.label_names = {"class"};
  draft.samples.reserve(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    char key[32];
    std::snprintf(key, sizeof key, "n%08lld_%05lld", static_cast<long long>(i / 1300), static_cast<long long>(i % 1300));
    draft.samples.push_back({key, stored.stored_hash, stored, {double(i % 1000)}});
    if (i % 1282 == 0) draft.block_starts.push_back(i);
  }
  (void)write_file_atomic(folder + "/.tessera-manifest", encode_manifest(draft));
}

void from_the_manifest(const std::string& folder, int64_t count) {
  OpenOptions open;
  open.data_path = folder;
  for (const char* shuffle : {"global", "block"}) {
    const FunctionConfig function = function_of(shuffle);
    const int64_t steps = count / function.batch.global();
    Spread opening, first;
    std::mt19937_64 draw(7);
    for (int i = 0; i < kPlaces; ++i) {
      const double begin = monotonic_seconds();
      const auto dataset = open_dataset(open);
      opening.seconds.push_back(monotonic_seconds() - begin);
      TileMaker maker = std::move(*TileMaker::create(*dataset, function));
      const auto tile = maker.make(Step(draw() % uint64_t(90 * steps)), TileIndex(draw() % 8));
      if (!tile) std::printf("%s\n", tile.error().message.c_str());
      first.seconds.push_back(monotonic_seconds() - begin);
    }
    opening.print("the manifest of " + std::to_string(count) + " samples opened");
    first.print("  and a tile of 32 at a drawn place, shuffle " + std::string(shuffle));
  }
}

// The order alone is asked where there is no manifest: ids of a tile, masks, then the one image 32 times.
void from_the_order(const std::string& folder, int64_t count) {
  OpenOptions open;
  open.data_path = folder;
  const auto dataset = *open_dataset(open);
  for (const char* shuffle : {"global", "block"}) {
    const FunctionConfig function = function_of(shuffle);
    const int64_t steps = count / function.batch.global();
    Spread first;
    std::mt19937_64 draw(8);
    for (int i = 0; i < kPlaces; ++i) {
      std::vector<SampleId> blocks;
      for (int64_t block = 0; block < count; block += 10'000) blocks.push_back(block);
      const double begin = monotonic_seconds();
      const TilePlace place = tile_place(function, steps, Step(draw() % uint64_t(3 * steps)), TileIndex(draw() % 8));
      const EpochOrder order(function, count, blocks, place.epoch);
      const auto ids = tile_samples(function, order, place);
      (void)draw_group_masks(function, 1, 0);
      SampleTransform transform = std::move(*SampleTransform::create(function));
      SampleReader reader(dataset);
      std::vector<uint8_t> pixels(224 * 224 * 3);
      for (const SampleId id : ids) {
        const std::string bytes = *reader.read(id % dataset->manifest->sample_count());
        (void)transform.training_crop({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, place.epoch, id, pixels.data());
      }
      first.seconds.push_back(monotonic_seconds() - begin);
    }
    first.print("a tile of 32 at a drawn place of an order of " + std::to_string(count) + ", shuffle " + shuffle);
  }
}

// The whole program: exec to the first tile in another process's hands.
void from_the_process(const std::string& folder, const std::string& program, int threads) {
  (void)write_file_atomic(folder + "/function.yaml", print_function(function_of("global")));
  Spread serving, first;
  for (int i = 0; i < 9; ++i) {
    const std::string address_file = folder + "/address" + std::to_string(i);
    SpawnOptions spawn;
    spawn.command = {program, "--standalone", "--data", folder, "--function", folder + "/function.yaml", "--address-file", address_file, "--threads", std::to_string(threads)};
    spawn.output_file = folder + "/log";
    const double begin = monotonic_seconds();
    Child loader = std::move(*Child::spawn(spawn));
    std::string address;
    while (address.empty()) {
      if (const auto text = read_file(address_file)) address = nlohmann::json::parse(*text)["data_address"];
      ::usleep(500);
    }
    serving.seconds.push_back(monotonic_seconds() - begin);
    proto::ChannelOptions channel;
    channel.sender = "bench";
    auto client = std::move(*proto::Client::connect(address, channel));
    (void)client.send(proto::TileRequest{1, 123'456 + i * 1000, 3, int64_t{1} << 30, host_identity()});
    while (!client.receive(1000)) {
    }
    first.seconds.push_back(monotonic_seconds() - begin);
  }
  serving.print("tessera-loader from exec until it serves");
  first.print("  and until the first tile of 32 is there");
}

}  // namespace
}  // namespace tessera::data

int main(int argc, char** argv) {
  using namespace tessera;
  const int64_t samples = argc > 1 ? std::atoll(argv[1]) : 1'281'167, order = argc > 2 ? std::atoll(argv[2]) : 1'000'000'000;
  data::TemporaryFolder folder;
  data::make_large(folder / "d", samples);
  data::from_the_manifest(folder / "d", samples);
  data::from_the_order(folder / "d", order);
  data::from_the_process(folder / "d", executable_folder() + "/../bin/tessera-loader", argc > 3 ? std::atoi(argv[3]) : 1);
  return 0;
}
