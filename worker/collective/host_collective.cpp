#include <cstring>
#include <deque>

#include "worker/collective/collective.h"
#include "worker/optimizer/update_kernels.h"

namespace tessera::collective {
namespace {

// Scratch floats that keep their capacity from step to step.
class Arena {
 public:
  void reset() { used_ = 0; }
  float* take(int64_t n) {
    if (used_ == buffers_.size()) buffers_.emplace_back();
    auto& buffer = buffers_[used_++];
    if (int64_t(buffer.size()) < n) buffer.resize(size_t(n));
    return buffer.data();
  }

 private:
  std::deque<std::vector<float>> buffers_;
  size_t used_ = 0;
};

const float* sum_of_nodes(int tile_count, const std::vector<std::pair<Node, const float*>>& have, int64_t n, Arena& arena) {
  return finish_tree(Node{0, tile_count}, have, [&](const float* a, const float* b) -> const float* {
    float* out = arena.take(n);
    optimizer::kernels::add(a, b, out, n);
    return out;
  });
}

class Single : public Collective {
 public:
  explicit Single(int tile_count) : tile_count_(tile_count) {}
  Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) override {
    arena_.reset();
    std::vector<std::pair<Node, const float*>> have;
    for (const auto& node : nodes) have.emplace_back(node.node, node.data);
    const float* sum = sum_of_nodes(tile_count_, have, n, arena_);
    if (sum != result) std::memcpy(result, sum, size_t(n) * sizeof(float));
    return {};
  }
  Status all_gather(float*, int64_t) override { return {}; }
  Status broadcast(void*, int64_t, Rank) override { return {}; }
  void quiesce() override {}
  Rank suspect() const override { return -1; }

 private:
  int tile_count_;
  Arena arena_;
};

class Host : public Collective {
 public:
  Host(Mesh& mesh, int tile_count, Millis timeout_ms) : mesh_(mesh), tile_count_(tile_count), timeout_ms_(timeout_ms) {
    for (Rank r = 0; r < mesh.world_size(); ++r) nodes_of_.push_back(maximal_nodes(tile_count, *tile_range(tile_count, mesh.world_size(), r)));
  }

  Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) override {
    arena_.reset();
    const int world = mesh_.world_size();
    const auto [first, last] = slice_of(n, world, mesh_.rank());
    const int64_t length = last - first;
    std::vector<std::vector<Piece>> out(size_t(world), std::vector<Piece>{}), in(size_t(world), std::vector<Piece>{});
    std::vector<std::pair<Node, const float*>> have;
    for (Rank r = 0; r < world; ++r) {
      if (r == mesh_.rank()) {
        for (const auto& node : nodes) have.emplace_back(node.node, node.data + first);
        continue;
      }
      const auto [from, to] = slice_of(n, world, r);
      for (const auto& node : nodes) out[size_t(r)].push_back({node.data + from, size_t(to - from) * sizeof(float)});
      for (const Node& theirs : nodes_of_[size_t(r)]) {
        float* buffer = arena_.take(length);
        in[size_t(r)].push_back({buffer, size_t(length) * sizeof(float)});
        have.emplace_back(theirs, buffer);
      }
    }
    TESSERA_TRY(mesh_.transfer(std::move(out), std::move(in), timeout_ms_));
    if (length > 0) std::memcpy(result + first, sum_of_nodes(tile_count_, have, length, arena_), size_t(length) * sizeof(float));
    return all_gather(result, n);
  }

  Status all_gather(float* data, int64_t n) override {
    const int world = mesh_.world_size();
    std::vector<std::vector<Piece>> out(size_t(world), std::vector<Piece>{}), in(size_t(world), std::vector<Piece>{});
    const auto piece = [&](Rank r) {
      const auto [first, last] = slice_of(n, world, r);
      return Piece{data + first, size_t(last - first) * sizeof(float)};
    };
    for (Rank r = 0; r < world; ++r) {
      if (r == mesh_.rank()) continue;
      out[size_t(r)].push_back(piece(mesh_.rank()));
      in[size_t(r)].push_back(piece(r));
    }
    return mesh_.transfer(std::move(out), std::move(in), timeout_ms_);
  }

  Status broadcast(void* data, int64_t size_bytes, Rank root) override {
    const size_t world = size_t(mesh_.world_size());
    std::vector<std::vector<Piece>> out(world), in(world);
    for (size_t r = 0; r < world; ++r) {
      if (mesh_.rank() == root && Rank(r) != root) out[r].push_back({data, size_t(size_bytes)});
      if (mesh_.rank() != root && Rank(r) == root) in[r].push_back({data, size_t(size_bytes)});
    }
    return mesh_.transfer(std::move(out), std::move(in), timeout_ms_);
  }
  void quiesce() override {}
  Rank suspect() const override { return mesh_.suspect(); }

 private:
  Mesh& mesh_;
  int tile_count_;
  Millis timeout_ms_;
  std::vector<std::vector<Node>> nodes_of_;
  Arena arena_;
};

}  // namespace

std::unique_ptr<Collective> make_single(int tile_count) { return std::make_unique<Single>(tile_count); }
std::unique_ptr<Collective> make_host(Mesh& mesh, int tile_count, Millis timeout_ms) { return std::make_unique<Host>(mesh, tile_count, timeout_ms); }

}  // namespace tessera::collective
