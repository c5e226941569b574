// Gives every rank the same part of all ranks' buffers: by reading the memory of those on this host, over the mesh from
// the others. The transport below the host collective; one thread at a time.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "worker/collective/collective.h"

namespace tessera::collective {

// Scratch words that keep their capacity from call to call.
class Scratch {
 public:
  void reset() { used_ = 0; }
  float* take(int64_t n);

 private:
  std::deque<std::vector<float>> buffers_;
  size_t used_ = 0;
};

class HostReads {
 public:
  // arena null: one of its own, into which everything is copied.
  HostReads(Mesh& mesh, Millis timeout_ms, Transport transport, SharedArena* arena);

  // Reduce's first half. mine: this rank's buffers of n words each; counts[r]: how many rank r has. slices[r][i] becomes
  // rank r's i-th buffer from word `first of slice_of(n, rank())`, readable until this rank's next call. Errors: kRebuildWorld.
  Status collect(const std::vector<const float*>& mine, int64_t n, const std::vector<size_t>& counts, std::vector<std::vector<const float*>>& slices);
  // Slice r of data (n words) comes from rank r; ours is there.
  Status gather(float* data, int64_t n);
  Status broadcast(void* data, int64_t size_bytes, Rank root);
  Rank suspect() const { return suspect_ >= 0 ? suspect_ : mesh_.suspect(); }

 private:
  Status agree();  // once: with whom memory is shared
  SharedPlace place_of(const float* data, int64_t n, int64_t first, int64_t last, std::shared_ptr<void>& copy, int64_t& copy_words);
  Result<const float*> view(Rank r, const SharedPlace& place, int64_t last_word);
  tl::unexpected<Error> lost(Rank r, const std::string& why);
  size_t world() const { return size_t(mesh_.world_size()); }

  Mesh& mesh_;
  const Millis timeout_ms_;
  const Transport transport_;
  SharedArena own_arena_;
  SharedArena& arena_;
  bool agreed_ = false;
  std::vector<char> shared_;  // by rank
  bool any_shared_ = false, any_mesh_ = false;
  std::vector<int64_t> pids_;
  struct Copies {
    std::vector<std::shared_ptr<void>> memory;
    std::vector<int64_t> words;
  };
  Copies staged_;            // buffers outside the arena, for collect
  std::shared_ptr<void> staged_result_[2];  // for gather, in turns: a peer may still read the one before
  int64_t staged_result_words_[2] = {0, 0};
  size_t turn_ = 0;
  std::map<std::pair<Rank, uint64_t>, std::shared_ptr<SharedView>> views_;  // by nonce, for the generation
  Scratch received_;
  Rank suspect_ = -1;
};

}  // namespace tessera::collective
