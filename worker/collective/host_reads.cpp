#include "worker/collective/host_reads.h"

#include <algorithm>
#include <cstring>
#include <unistd.h>

namespace tessera::collective {
namespace {

using Pieces = std::vector<std::vector<Piece>>;

constexpr int64_t kWord = 4;

// What each rank says of itself at the first call.
struct Greeting {
  char host[160] = {};  // host_identity(), empty: shares nothing
  int64_t pid = 0;
  SharedPlace probe;  // a word that shows whether this memory can be opened
};

}  // namespace

float* Scratch::take(int64_t n) {
  if (used_ == buffers_.size()) buffers_.emplace_back();
  auto& buffer = buffers_[used_++];
  if (int64_t(buffer.size()) < n) buffer.resize(size_t(n));
  return buffer.data();
}

HostReads::HostReads(Mesh& mesh, Millis timeout_ms, Transport transport, SharedArena* arena)
    : mesh_(mesh), timeout_ms_(timeout_ms), transport_(transport), arena_(arena ? *arena : own_arena_), shared_(world()), pids_(world()) {}

tl::unexpected<Error> HostReads::lost(Rank r, const std::string& why) {
  suspect_ = r;
  return fail(ErrorCode::kRebuildWorld, "[collective] the memory of rank " + std::to_string(r) + " cannot be read: " + why);
}

// Two ranks share memory when both say the same host and both could open the other's probe: containers may have one boot
// and yet not see each other's processes.
Status HostReads::agree() {
  if (agreed_) return {};
  const auto probe = arena_.allocate(kWord);
  std::vector<Greeting> greetings(world());
  Greeting& mine = greetings[size_t(mesh_.rank())];
  const auto place = arena_.locate(probe.get(), kWord);
  if (transport_ == Transport::kAuto && place && host_identity().size() < sizeof mine.host) {
    std::memcpy(mine.host, host_identity().data(), host_identity().size());
    mine.pid = getpid(), mine.probe = *place;
  }
  TESSERA_TRY(mesh_.all_to_all(greetings, timeout_ms_));
  std::vector<char> can(world()), theirs(world());
  for (size_t r = 0; r < world(); ++r) {
    Greeting& other = greetings[r];
    other.host[sizeof other.host - 1] = 0;
    pids_[r] = other.pid;
    can[r] = Rank(r) != mesh_.rank() && mine.host[0] && std::strcmp(mine.host, other.host) == 0 && view(Rank(r), other.probe, 1).has_value();
  }
  suspect_ = -1;  // memory that cannot be opened here is no fault
  Pieces out(world()), in(world());
  for (size_t r = 0; r < world(); ++r)
    if (Rank(r) != mesh_.rank()) out[r].push_back({&can[r], 1}), in[r].push_back({&theirs[r], 1});
  TESSERA_TRY(mesh_.transfer(std::move(out), std::move(in), timeout_ms_));
  for (size_t r = 0; r < world(); ++r) {
    shared_[r] = can[r] && theirs[r];
    if (Rank(r) != mesh_.rank()) (shared_[r] ? any_shared_ : any_mesh_) = true;
  }
  agreed_ = true;
  return {};
}

Result<const float*> HostReads::view(Rank r, const SharedPlace& place, int64_t last_word) {
  if (place.offset_bytes < 0 || place.offset_bytes % kWord != 0 || place.offset_bytes + last_word * kWord > place.size_bytes) return lost(r, "it names a place outside of it");
  auto& known = views_[{r, place.nonce}];
  if (!known) {
    auto opened = SharedView::open(pids_[size_t(r)], int32_t(place.descriptor), place.nonce, place.size_bytes);
    if (!opened) return lost(r, opened.error().message);
    known = std::move(*opened);
  }
  if (known->size() < place.offset_bytes + last_word * kWord) return lost(r, "it is smaller than was said");
  return reinterpret_cast<const float*>(known->data() + place.offset_bytes);
}

// Where peers find words [first, last) of data; outside the arena it is copied into `copy`, which grows.
SharedPlace HostReads::place_of(const float* data, int64_t n, int64_t first, int64_t last, std::shared_ptr<void>& copy, int64_t& copy_words) {
  if (const auto place = arena_.locate(data, n * kWord)) return *place;
  if (copy_words < n) copy = arena_.allocate(n * kWord), copy_words = n;
  std::memcpy(static_cast<float*>(copy.get()) + first, data + first, size_t((last - first) * kWord));
  return arena_.locate(copy.get(), n * kWord).value_or(SharedPlace{});
}

Status HostReads::collect(const std::vector<const float*>& mine, int64_t n, const std::vector<size_t>& counts, std::vector<std::vector<const float*>>& slices) {
  TESSERA_TRY(agree());
  received_.reset();
  const auto [first, last] = slice_of(n, mesh_.world_size(), mesh_.rank());
  const int64_t length = last - first;
  // One word at least to everybody: it also says that this rank has left the call before.
  std::vector<SharedPlace> places(std::max<size_t>(1, mine.size()));
  staged_.memory.resize(std::max(staged_.memory.size(), mine.size())), staged_.words.resize(staged_.memory.size());
  for (size_t i = 0; any_shared_ && i < mine.size(); ++i) places[i] = place_of(mine[i], n, 0, n, staged_.memory[i], staged_.words[i]);
  std::vector<std::vector<SharedPlace>> theirs(world());
  Pieces out(world()), in(world());
  slices.assign(world(), {});
  for (size_t r = 0; r < world(); ++r) {
    if (Rank(r) == mesh_.rank()) {
      for (const float* buffer : mine) slices[r].push_back(buffer + first);
    } else if (shared_[r]) {
      theirs[r].resize(std::max<size_t>(1, counts[r]));
      out[r].push_back({places.data(), places.size() * sizeof(SharedPlace)}), in[r].push_back({theirs[r].data(), theirs[r].size() * sizeof(SharedPlace)});
    } else {
      const auto [from, to] = slice_of(n, mesh_.world_size(), Rank(r));
      for (const float* buffer : mine) out[r].push_back({const_cast<float*>(buffer) + from, size_t((to - from) * kWord)});
      for (size_t i = 0; i < counts[r]; ++i) {
        float* buffer = received_.take(length);
        in[r].push_back({buffer, size_t(length * kWord)});
        slices[r].push_back(buffer);
      }
    }
  }
  TESSERA_TRY(mesh_.transfer(std::move(out), std::move(in), timeout_ms_));
  for (size_t r = 0; r < world(); ++r)
    for (size_t i = 0; shared_[r] && i < counts[r]; ++i) {
      TESSERA_ASSIGN(const float* buffer, view(Rank(r), theirs[r][i], n));
      slices[r].push_back(buffer + first);
    }
  return {};
}

Status HostReads::gather(float* data, int64_t n) {
  TESSERA_TRY(agree());
  const auto [first, last] = slice_of(n, mesh_.world_size(), mesh_.rank());
  SharedPlace mine;
  if (any_shared_) mine = place_of(data, n, first, last, staged_result_[turn_], staged_result_words_[turn_]), turn_ ^= 1;
  std::vector<SharedPlace> theirs(world());
  Pieces out(world()), in(world());
  for (size_t r = 0; r < world(); ++r) {
    if (Rank(r) == mesh_.rank()) continue;
    const auto [from, to] = slice_of(n, mesh_.world_size(), Rank(r));
    if (shared_[r]) out[r].push_back({&mine, sizeof mine}), in[r].push_back({&theirs[r], sizeof(SharedPlace)});
    else out[r].push_back({data + first, size_t((last - first) * kWord)}), in[r].push_back({data + from, size_t((to - from) * kWord)});
  }
  TESSERA_TRY(mesh_.transfer(std::move(out), std::move(in), timeout_ms_));
  for (size_t r = 0; r < world(); ++r) {
    if (!shared_[r]) continue;
    const auto [from, to] = slice_of(n, mesh_.world_size(), Rank(r));
    if (from == to) continue;
    TESSERA_ASSIGN(const float* buffer, view(Rank(r), theirs[r], to));
    std::memcpy(data + from, buffer + from, size_t((to - from) * kWord));
  }
  return {};
}

Status HostReads::broadcast(void* data, int64_t size_bytes, Rank root) {
  Pieces out(world()), in(world());
  for (size_t r = 0; r < world(); ++r) {
    if (mesh_.rank() == root && Rank(r) != root) out[r].push_back({data, size_t(size_bytes)});
    if (mesh_.rank() != root && Rank(r) == root) in[r].push_back({data, size_t(size_bytes)});
  }
  return mesh_.transfer(std::move(out), std::move(in), timeout_ms_);
}

}  // namespace tessera::collective
