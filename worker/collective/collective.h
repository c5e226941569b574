// What a generation's ranks do together. One object per generation and trainer; used by the training thread only.
// Errors are kRebuildWorld: the generation is over; nothing of the state has changed by the failed call.
#pragma once

#include <memory>
#include <vector>

#include "worker/collective/mesh.h"
#include "worker/collective/tree_sum.h"

namespace tessera::collective {

// One maximal node's partial sums: n floats.
struct NodeBuffer {
  Node node;
  float* data = nullptr;
};

class Collective {
 public:
  virtual ~Collective() = default;
  // The defined sum over all tiles of one bucket: nodes are this rank's maximal nodes, each with n floats; the whole sum
  // is written to result (n floats) on every rank, bit-equal for any world size. result may be a node's buffer only with
  // one rank.
  virtual Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) = 0;
  // Slice r (slice_of) of the n floats is taken from rank r; afterwards every rank holds all. In place.
  virtual Status all_gather(float* data, int64_t n) = 0;
  // size bytes from rank root to every rank.
  virtual Status broadcast(void* data, int64_t size_bytes, Rank root) = 0;
  // Waits until nothing of this generation is in flight on the device. After it buffers are ours again.
  virtual void quiesce() = 0;
  virtual Rank suspect() const = 0;
};

// One rank: no communication.
std::unique_ptr<Collective> make_single(int tile_count);
// CPU ranks over the mesh (TCP). The mesh must outlive it. timeout_ms: nothing moved for so long: error; 0: none.
std::unique_ptr<Collective> make_host(Mesh& mesh, int tile_count, Millis timeout_ms);

}  // namespace tessera::collective
