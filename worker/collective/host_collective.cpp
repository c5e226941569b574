#include <cstring>

#include "worker/collective/collective.h"
#include "worker/collective/fixed_point.h"
#include "worker/collective/host_reads.h"
#include "worker/optimizer/update_kernels.h"

namespace tessera::collective {
namespace {

constexpr int64_t kChunkFloats = 8192;  // of a slice at a time: the tree's inner sums stay in the cache

using Inputs = std::vector<std::pair<Node, const float*>>;

// The tree over floats [0, n) of the inputs, the root's sum into out, which is no input.
void sum_tree(int tile_count, const Inputs& inputs, int64_t n, float* out, Scratch& scratch) {
  Inputs at = inputs;
  for (int64_t from = 0; from < n; from += kChunkFloats) {
    const int64_t length = std::min(kChunkFloats, n - from);
    for (size_t i = 0; i < at.size(); ++i) at[i].second = inputs[i].second + from;
    size_t left = at.size() - 1;  // additions; the last one is the root's
    scratch.reset();
    const float* sum = finish_tree(Node{0, tile_count}, at, [&](const float* a, const float* b) -> const float* {
      float* to = --left == 0 ? out + from : scratch.take(kChunkFloats);
      optimizer::kernels::add(a, b, to, length);
      return to;
    });
    if (sum != out + from) std::memcpy(out + from, sum, size_t(length) * sizeof(float));
  }
}

class Single : public Collective {
 public:
  explicit Single(int tile_count) : tile_count_(tile_count) {}
  Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) override {
    Inputs have;
    for (const auto& node : nodes) have.emplace_back(node.node, node.data);
    if (have.size() > 1) sum_tree(tile_count_, have, n, result, scratch_);
    else if (have.front().second != result) std::memcpy(result, have.front().second, size_t(n) * sizeof(float));
    return {};
  }
  Status sum_floats(float*, int64_t) override { return {}; }
  Status sum_integers(int32_t*, int64_t) override { return {}; }
  Status all_gather(float*, int64_t) override { return {}; }
  Status broadcast(void*, int64_t, Rank) override { return {}; }
  void cancel() override {}
  void quiesce() override {}
  Rank suspect() const override { return -1; }
  bool alone() const override { return true; }

 private:
  int tile_count_;
  Scratch scratch_;
};

class Host : public Collective {
 public:
  Host(Mesh& mesh, int tile_count, Millis timeout_ms, Transport transport, SharedArena* arena)
      : mesh_(mesh), tile_count_(tile_count), reads_(mesh, timeout_ms, transport, arena), one_each_(size_t(mesh.world_size()), 1) {
    for (Rank r = 0; r < mesh.world_size(); ++r) {
      nodes_of_.push_back(maximal_nodes(tile_count, *tile_range(tile_count, mesh.world_size(), r)));
      node_counts_.push_back(nodes_of_.back().size());
    }
  }

  Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) override {
    std::vector<const float*> mine;
    for (const auto& node : nodes) mine.push_back(node.data);
    TESSERA_TRY(reads_.collect(mine, n, node_counts_, slices_));
    Inputs have;
    for (size_t r = 0; r < slices_.size(); ++r)
      for (size_t i = 0; i < slices_[r].size(); ++i) have.emplace_back(nodes_of_[r][i], slices_[r][i]);
    const auto [first, last] = slice_of(n, mesh_.world_size(), mesh_.rank());
    sum_tree(tile_count_, have, last - first, result + first, scratch_);
    return reads_.gather(result, n);
  }

  // In rank order.
  Status sum_floats(float* data, int64_t n) override {
    return sum_words(data, n, [](float* a, const float* b, int64_t length) { optimizer::kernels::accumulate(a, b, length); });
  }
  Status sum_integers(int32_t* data, int64_t n) override {
    return sum_words(reinterpret_cast<float*>(data), n, [](float* a, const float* b, int64_t length) {
      fixed_point::accumulate(reinterpret_cast<int32_t*>(a), reinterpret_cast<const int32_t*>(b), length);
    });
  }
  Status all_gather(float* data, int64_t n) override { return reads_.gather(data, n); }
  Status broadcast(void* data, int64_t size_bytes, Rank root) override { return reads_.broadcast(data, size_bytes, root); }
  void cancel() override { mesh_.hang_up(); }
  void quiesce() override {}
  Rank suspect() const override { return reads_.suspect(); }

 private:
  // Our slice of data is an input too, and nobody else reads it: summed beside and copied back chunk by chunk.
  template <typename Add>
  Status sum_words(float* data, int64_t n, const Add& add) {
    TESSERA_TRY(reads_.collect({data}, n, one_each_, slices_));
    const auto [first, last] = slice_of(n, mesh_.world_size(), mesh_.rank());
    scratch_.reset();
    float* sum = scratch_.take(kChunkFloats);
    for (int64_t from = 0; from < last - first; from += kChunkFloats) {
      const int64_t length = std::min(kChunkFloats, last - first - from);
      std::memcpy(sum, slices_[0][0] + from, size_t(length) * sizeof(float));
      for (size_t r = 1; r < slices_.size(); ++r) add(sum, slices_[r][0] + from, length);
      std::memcpy(data + first + from, sum, size_t(length) * sizeof(float));
    }
    return reads_.gather(data, n);
  }

  Mesh& mesh_;
  int tile_count_;
  HostReads reads_;
  std::vector<size_t> one_each_, node_counts_;
  std::vector<std::vector<Node>> nodes_of_;
  std::vector<std::vector<const float*>> slices_;
  Scratch scratch_;
};

}  // namespace

std::unique_ptr<Collective> make_single(int tile_count) { return std::make_unique<Single>(tile_count); }
std::unique_ptr<Collective> make_host(Mesh& mesh, int tile_count, Millis timeout_ms, Transport transport, SharedArena* arena) {
  return std::make_unique<Host>(mesh, tile_count, timeout_ms, transport, arena);
}

}  // namespace tessera::collective
