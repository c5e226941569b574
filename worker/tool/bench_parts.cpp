// `tessera bench collective` and `tessera bench update`: the parts of a step that move bytes, each beside a baseline that is
// measured in the same run.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "common/clock.h"
#include "worker/collective/collective.h"
#include "worker/optimizer/update.h"
#include "worker/optimizer/update_kernels.h"
#include "worker/tool/bench_parts.h"

namespace tessera::tool {
namespace {

using nlohmann::json;
using namespace tessera::collective;

json quantiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {{"min", values.front()}, {"median", values[values.size() / 2]}, {"max", values.back()}};
}

// What everybody else does: slice s of every rank's one buffer goes to rank s, which adds in rank order, then all gather.
// The same transport and the same bytes; only its sum depends on the number of ranks.
Status plain_all_reduce(Mesh& mesh, Collective& host, std::vector<float>& data, std::vector<std::vector<float>>& inbox) {
  const int64_t n = int64_t(data.size());
  const int world = mesh.world_size();
  const auto [first, last] = slice_of(n, world, mesh.rank());
  std::vector<std::vector<Piece>> out(static_cast<size_t>(world)), in(static_cast<size_t>(world));
  for (Rank r = 0; r < world; ++r) {
    if (r == mesh.rank()) continue;
    const auto [begin, end] = slice_of(n, world, r);
    out[size_t(r)].push_back({data.data() + begin, size_t(end - begin) * sizeof(float)});
    inbox[size_t(r)].resize(size_t(last - first));
    in[size_t(r)].push_back({inbox[size_t(r)].data(), inbox[size_t(r)].size() * sizeof(float)});
  }
  TESSERA_TRY(mesh.transfer(std::move(out), std::move(in), 0));
  for (Rank r = 0; r < world; ++r)
    if (r != mesh.rank()) optimizer::kernels::accumulate(data.data() + first, inbox[size_t(r)].data(), last - first);
  return host.all_gather(data.data(), n);
}

struct RankTimes {
  std::vector<double> tree, plain;
};

// Rounds alternate between the two; every rank's time of a round counts, the slowest is the round's.
Status measure_rank(Mesh& mesh, const BenchCollectiveOptions& o, RankTimes& times) {
  const auto host = make_host(mesh, o.tiles, 0);
  const int64_t n = o.megabytes * 250000;
  TESSERA_ASSIGN(const TileRange range, tile_range(o.tiles, mesh.world_size(), mesh.rank()));
  const std::vector<Node> nodes = maximal_nodes(o.tiles, range);
  std::vector<std::vector<float>> buffers(nodes.size(), std::vector<float>(size_t(n), 1.0f)), inbox(static_cast<size_t>(mesh.world_size()));
  std::vector<float> result(static_cast<size_t>(n)), data(static_cast<size_t>(n), 1.0f);
  std::vector<NodeBuffer> views;
  for (size_t i = 0; i < nodes.size(); ++i) views.push_back({nodes[i], buffers[i].data()});
  std::vector<int64_t> ready(static_cast<size_t>(mesh.world_size()));
  for (int64_t round = 0; round <= o.repeats; ++round)
    for (const bool tree : {true, false}) {
      TESSERA_TRY(mesh.all_to_all(ready, 0));  // together
      const double start = monotonic_seconds();
      TESSERA_TRY(tree ? host->exchange(views, n, result.data()) : plain_all_reduce(mesh, *host, data, inbox));
      if (round > 0) (tree ? times.tree : times.plain).push_back(monotonic_seconds() - start);
    }
  return {};
}

double slowest(const std::vector<RankTimes>& ranks, std::vector<double> RankTimes::*field, size_t round) {
  double out = 0;
  for (const auto& rank : ranks) out = std::max(out, (rank.*field)[round]);
  return out;
}

}  // namespace

Result<json> bench_collective(const BenchCollectiveOptions& o) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  std::vector<MeshPeer> peers;
  for (Rank r = 0; r < o.ranks; ++r) {
    TESSERA_ASSIGN(auto listener, MeshListener::open("127.0.0.1"));
    peers.push_back({r, "127.0.0.1:" + std::to_string(listener->port()), 1});
    listeners.push_back(std::move(listener));
  }
  std::vector<RankTimes> ranks(static_cast<size_t>(o.ranks));
  std::vector<Status> ended(static_cast<size_t>(o.ranks));
  {
    std::vector<std::jthread> threads;
    for (Rank r = 0; r < o.ranks; ++r)
      threads.emplace_back([&, r] {
        AbortSignal abort;
        auto mesh = Mesh::connect(*listeners[size_t(r)], "bench", {1, 1}, r, peers, abort, 10000);
        ended[size_t(r)] = mesh ? measure_rank(**mesh, o, ranks[size_t(r)]) : Status(tl::unexpected(mesh.error()));
      });
  }
  for (const Status& status : ended) TESSERA_TRY(status);
  std::vector<double> tree, plain, ratio;
  for (size_t round = 0; round < size_t(o.repeats); ++round) {
    tree.push_back(slowest(ranks, &RankTimes::tree, round)), plain.push_back(slowest(ranks, &RankTimes::plain, round));
    ratio.push_back(tree.back() / plain.back());
  }
  return json{{"seconds", quantiles(tree)}, {"plain_all_reduce_seconds", quantiles(plain)}, {"ratio", quantiles(ratio)}, {"gigabytes_per_second", double(o.megabytes) / 1e3 / quantiles(tree)["median"].get<double>()},
              {"settings", {{"ranks", o.ranks}, {"tiles", o.tiles}, {"megabytes", o.megabytes}, {"repeats", o.repeats}, {"transport", "tcp, loopback, a thread a rank"}}}};
}

Result<json> bench_update(const FunctionConfig& function, int64_t repeats) {
  model::State state = model::State::initial(function);
  const model::FlatBuffers gradient = model::make_buffers(state.layout);
  std::vector<float> target(size_t(state.layout.target_floats));
  int64_t floats = 0;
  for (const auto& bucket : gradient) floats += bucket.numel();
  std::vector<float> from(static_cast<size_t>(floats), 1.0f), to(static_cast<size_t>(floats));
  std::vector<double> update, ema, digest, copy;
  for (int64_t i = 0; i <= repeats; ++i) {
    double at = monotonic_seconds();
    const auto lap = [&](std::vector<double>& into) {
      const double now = monotonic_seconds();
      if (i > 0) into.push_back(now - at);
      at = monotonic_seconds();
    };
    optimizer::apply_adamw(state, gradient, 1.0f, {1e-4, 0.04, 0.996}, function.optimizer, false);
    lap(update);
    optimizer::ema_slice(state, 0.996, 0, state.layout.target_floats, target.data());
    lap(ema);
    (void)state.digest();
    lap(digest);
    std::memcpy(to.data(), from.data(), size_t(floats) * sizeof(float));
    lap(copy);
  }
  const auto median = [](const std::vector<double>& values) { return quantiles(values)["median"].get<double>(); };
  // AdamW reads weights, gradient and two moments and writes three of them; EMA reads two and writes one.
  const double adamw = 7.0 * 4 * double(floats) / median(update) / 1e9, averaged = 3.0 * 4 * double(state.layout.target_floats) / median(ema) / 1e9, bandwidth = 2.0 * 4 * double(floats) / median(copy) / 1e9;
  return json{{"seconds", {{"adamw", quantiles(update)}, {"ema", quantiles(ema)}, {"state_digest", quantiles(digest)}, {"memcpy", quantiles(copy)}}},
              {"gigabytes_per_second", {{"adamw", adamw}, {"ema", averaged}, {"memcpy", bandwidth}}},
              {"of_memcpy_bandwidth", {{"adamw", adamw / bandwidth}, {"ema", averaged / bandwidth}}},
              {"settings", {{"model", function.model.name}, {"parameters", floats}, {"repeats", repeats}}}};
}

}  // namespace tessera::tool
