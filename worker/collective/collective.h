// What a generation's ranks do together. One object per generation and trainer; used by one thread at a time, with the
// mesh that it was made with: all ranks make the same calls in the same order.
// Errors are kRebuildWorld: the generation is over; nothing of the state has changed by the failed call. Abort is the
// AbortSignal that the implementation was made with (any thread may raise it): a call in flight returns at once, and after
// an abort or an error every later call answers at once.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "worker/collective/mesh.h"
#include "worker/collective/shared_arena.h"
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
  // Plain sums of every rank's n elements, in place, the same bits on every rank. Those of floats depend on the number of
  // ranks; those of integers (modulo 2^32) on nothing.
  virtual Status sum_floats(float* data, int64_t n) = 0;
  virtual Status sum_integers(int32_t* data, int64_t n) = 0;
  // Slice r (slice_of) of the n floats is taken from rank r; afterwards every rank holds all. In place.
  virtual Status all_gather(float* data, int64_t n) = 0;
  // size bytes from rank root to every rank.
  virtual Status broadcast(void* data, int64_t size_bytes, Rank root) = 0;
  // Ends a call in flight on another thread, and every later one, with an error: the generation is being left. Any thread.
  virtual void cancel() = 0;
  // Waits until nothing of this generation is in flight on the device. After it buffers are ours again.
  virtual void quiesce() = 0;
  // Of a device whose work is queued: marks what the calling thread has queued by now (training thread), and makes what is
  // asked of this object from then on wait for it there (the thread that asks). Nothing on a host.
  virtual std::shared_ptr<void> mark() { return nullptr; }
  virtual Status begin_after(const std::shared_ptr<void>& /*mark*/) { return {}; }
  virtual Rank suspect() const = 0;
  // One rank: what it has is the sum, wherever it lies.
  virtual bool alone() const { return false; }
};

// One rank: no communication.
std::unique_ptr<Collective> make_single(int tile_count);
enum class Transport {
  kAuto,  // ranks of one host read each other's memory, as far as both may; the rest goes over the mesh
  kTcp,   // everything goes over the mesh
};
// CPU ranks. Whom this rank shares memory with is agreed on at the first call; the mesh's sockets then carry the words "it
// is there", so a peer's end is noticed as ever. Buffers in the arena are read in place, all others are copied into it
// first. mesh and arena must outlive it. timeout_ms: nothing moved for so long: error; 0: none.
// With shared memory: what a call wrote (result, data) stays as it is until every rank has entered its next call or is
// known to have left this one (the vote); buffers that a call only reads are free when it returns.
std::unique_ptr<Collective> make_host(Mesh& mesh, int tile_count, Millis timeout_ms, Transport transport = Transport::kTcp, SharedArena* arena = nullptr);
// GPU ranks: raw NCCL, one communicator per generation, buffers on `device` ("cuda:0"). The mesh carries the unique id.
// timeout_ms: longest wait for one call, after which the communicator is aborted; > 0. Errors: kFixConfig when this build
// or machine has no CUDA (no_nccl.cpp); kRebuildWorld when the communicator does not form in time.
Result<std::unique_ptr<Collective>> make_nccl(Mesh& mesh, AbortSignal& abort, int tile_count, const std::string& device, Millis timeout_ms);

// For tests: passes calls through and misbehaves on the n-th exchange.
enum class Misbehaviour {
  kFail,     // the call answers kRebuildWorld without communicating
  kFlipBit,  // the lowest bit of the result's first float is flipped on this rank
  kInfinite, // the result's first float becomes infinite, on every rank where it is planted
};
std::unique_ptr<Collective> make_faulty(std::unique_ptr<Collective> inner, Misbehaviour kind, int64_t at_exchange);

}  // namespace tessera::collective
