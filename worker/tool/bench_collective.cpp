// `tessera bench collective`: every reduction by every transport, beside what the machine can do.
#include <algorithm>
#include <array>
#include <cstring>
#include <thread>

#include "common/clock.h"
#include "worker/collective/collective.h"
#include "worker/tool/bench_parts.h"

namespace tessera::tool {
namespace {

using nlohmann::json;
using namespace tessera::collective;

enum Method { kTree, kFixed32, kFast, kBound, kMethods };
constexpr const char* kNames[] = {"tree", "fixed32", "fast", "bound"};
using Times = std::array<std::vector<double>, kMethods>;  // seconds by round

// One rank's buffers and calls.
class RankBench {
 public:
  RankBench(Mesh& mesh, const BenchCollectiveOptions& o, Transport transport)
      : mesh_(mesh), transport_(transport), n_(o.megabytes * 250000), host_(make_host(mesh, o.tiles, 0, transport, &arena_)) {
    for (const Node& node : maximal_nodes(o.tiles, *tile_range(o.tiles, mesh.world_size(), mesh.rank()))) {
      held_.push_back(arena_.allocate(n_ * 4));
      nodes_.push_back({node, static_cast<float*>(held_.back().get())});
    }
    for (auto* words : {&result_, &floats_, &integers_}) *words = take();
    for (Rank r = 0; r < mesh.world_size(); ++r) inbox_.push_back(transport == Transport::kTcp ? std::vector<float>(size_t(n_)) : std::vector<float>());
    from_.resize(size_t(n_)), to_.resize(size_t(n_));
  }
  Status round(Method method) {
    if (method == kTree) return host_->exchange(nodes_, n_, result_);
    if (method == kFixed32) return host_->sum_integers(reinterpret_cast<int32_t*>(integers_), n_);
    if (method == kFast) return host_->sum_floats(floats_, n_);
    return transport_ == Transport::kTcp ? raw_bytes() : copies();
  }

 private:
  float* take() {
    held_.push_back(arena_.allocate(n_ * 4));
    return static_cast<float*>(held_.back().get());
  }
  // The bytes of a plain all-reduce, both halves, and no sum.
  Status raw_bytes() {
    for (int half = 0; half < 2; ++half) {
      std::vector<std::vector<Piece>> out(inbox_.size()), in(inbox_.size());
      for (Rank r = 0; r < mesh_.world_size(); ++r) {
        if (r == mesh_.rank()) continue;
        const auto [from, to] = slice_of(n_, mesh_.world_size(), r);
        const auto [first, last] = slice_of(n_, mesh_.world_size(), mesh_.rank());
        out[size_t(r)].push_back({floats_ + from, size_t(to - from) * 4}), in[size_t(r)].push_back({inbox_[size_t(r)].data(), size_t(last - first) * 4});
      }
      TESSERA_TRY(mesh_.transfer(std::move(out), std::move(in), 0));
    }
    return {};
  }
  // What a plain all-reduce must touch at least: W slices read and one written, then W - 1 copied; as memcpy of as many bytes.
  Status copies() {
    const double words = double(n_) * (1.0 + 1.0 / mesh_.world_size() + 2.0 * (mesh_.world_size() - 1) / mesh_.world_size()) / 2;
    for (double left = words; left > 0; left -= double(n_)) std::memcpy(to_.data(), from_.data(), size_t(std::min(left, double(n_))) * 4);
    return {};
  }

  Mesh& mesh_;
  const Transport transport_;
  const int64_t n_;
  SharedArena arena_;
  std::unique_ptr<Collective> host_;
  std::vector<std::shared_ptr<void>> held_;
  std::vector<NodeBuffer> nodes_;
  float *result_ = nullptr, *floats_ = nullptr, *integers_ = nullptr;
  std::vector<std::vector<float>> inbox_;
  std::vector<float> from_, to_;
};

// Rounds alternate between the methods.
Status measure_rank(Mesh& mesh, const BenchCollectiveOptions& o, Transport transport, Times& times) {
  RankBench bench(mesh, o, transport);
  std::vector<int64_t> ready(static_cast<size_t>(mesh.world_size()));
  for (int64_t round = 0; round <= o.repeats; ++round)
    for (int method = 0; method < kMethods; ++method) {
      TESSERA_TRY(mesh.all_to_all(ready, 0));  // together
      const double start = monotonic_seconds();
      TESSERA_TRY(bench.round(Method(method)));
      if (round > 0) times[size_t(method)].push_back(monotonic_seconds() - start);
    }
  return mesh.all_to_all(ready, 0);  // nobody reads our memory any more
}

Result<json> measure(const BenchCollectiveOptions& o, Transport transport) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  std::vector<MeshPeer> peers;
  for (Rank r = 0; r < o.ranks; ++r) {
    TESSERA_ASSIGN(auto listener, MeshListener::open("127.0.0.1"));
    peers.push_back({r, "127.0.0.1:" + std::to_string(listener->port()), 1});
    listeners.push_back(std::move(listener));
  }
  std::vector<Times> ranks(static_cast<size_t>(o.ranks));
  std::vector<Status> ended(static_cast<size_t>(o.ranks));
  {
    std::vector<std::jthread> threads;
    for (Rank r = 0; r < o.ranks; ++r)
      threads.emplace_back([&, r] {
        AbortSignal abort;
        auto mesh = Mesh::connect(*listeners[size_t(r)], "bench", {1, 1}, r, peers, abort, 10000);
        ended[size_t(r)] = mesh ? measure_rank(**mesh, o, transport, ranks[size_t(r)]) : Status(tl::unexpected(mesh.error()));
      });
  }
  for (const Status& status : ended) TESSERA_TRY(status);
  Times slowest, to_fast;
  for (size_t round = 0; round < size_t(o.repeats); ++round)
    for (size_t method = 0; method < kMethods; ++method) {
      double seconds = 0;
      for (const auto& rank : ranks) seconds = std::max(seconds, rank[method][round]);
      slowest[method].push_back(seconds);
    }
  json out;
  for (size_t method = 0; method < kMethods; ++method) {
    for (size_t round = 0; round < size_t(o.repeats); ++round) to_fast[method].push_back(slowest[method][round] / slowest[kFast][round]);
    out[kNames[method]] = {{"seconds", quantiles(slowest[method])}, {"of_fast", quantiles(to_fast[method])}};
  }
  return out;
}

}  // namespace

Result<json> bench_collective(const BenchCollectiveOptions& o) {
  TESSERA_ASSIGN(const json shared, measure(o, Transport::kAuto));
  TESSERA_ASSIGN(const json tcp, measure(o, Transport::kTcp));
  return json{{"shared_memory", shared}, {"tcp", tcp}, {"settings", {{"ranks", o.ranks}, {"tiles", o.tiles}, {"megabytes", o.megabytes}, {"repeats", o.repeats}, {"a_rank_is", "a thread"}}}};
}

}  // namespace tessera::tool
