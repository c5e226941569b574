// Every message's fields, once, so that tests can fill and compare any message. Structured bindings make a field that is
// added to proto/messages.h and not here a compile error.
#pragma once

#include <bit>
#include <concepts>
#include <random>
#include <type_traits>

#include "proto/messages.h"

namespace tessera::proto::test {

#define TESSERA_FIELDS(Type, ...)                              \
  template <typename S, typename F>                            \
    requires std::same_as<std::remove_const_t<S>, Type>        \
  void visit_fields(S& s, F&& f) {                             \
    auto& [__VA_ARGS__] = s;                                   \
    [&f](auto&... field) { (f(field), ...); }(__VA_ARGS__);    \
  }
#define TESSERA_NO_FIELDS(Type)                                \
  template <typename S, typename F>                            \
    requires std::same_as<std::remove_const_t<S>, Type>        \
  void visit_fields(S&, F&&) {                                 \
    static_assert(std::is_empty_v<Type>);                      \
  }

TESSERA_FIELDS(Hash128, a, b)
TESSERA_FIELDS(StateDigest, a, b)
TESSERA_FIELDS(Generation, a, b)
TESSERA_FIELDS(BuildInfo, a, b, c)
TESSERA_FIELDS(DeviceSlot, a, b)
TESSERA_FIELDS(Member, a, b, c, d)
TESSERA_FIELDS(TimeSplit, a, b, c, d, e)
TESSERA_FIELDS(LoaderShare, a, b, c, d)
TESSERA_FIELDS(CropBox, a, b, c, d, e)
TESSERA_FIELDS(SharedPixels, a, b, c)

TESSERA_NO_FIELDS(std::monostate)
TESSERA_FIELDS(Refused, a, b)
TESSERA_FIELDS(Shutdown, a, b)
TESSERA_FIELDS(Goodbye, a, b)
TESSERA_NO_FIELDS(Reintroduce)
TESSERA_FIELDS(DaemonHello, a, b, c, d)
TESSERA_FIELDS(DaemonWelcome, a, b, c, d)
TESSERA_FIELDS(DaemonStatus, a)
TESSERA_FIELDS(TrainerExited, a, b, c, d, e, f_)
TESSERA_FIELDS(FenceTrainer, a, b, c)
TESSERA_FIELDS(TrainerFenced, a, b)
TESSERA_FIELDS(TrainerHello, a, b, c, d, e, f_, g, h, i, j)
TESSERA_FIELDS(TrainerWelcome, a, b, c, d, e, f_, g, h, i, j)
TESSERA_NO_FIELDS(TrainerReady)
TESSERA_FIELDS(WorldStart, a, b, c, d, e, f_, g, h, i)
TESSERA_FIELDS(WorldStarted, a, b, c)
TESSERA_FIELDS(WorldFault, a, b, c, d, e, f_)
TESSERA_FIELDS(WorldStop, a, b)
TESSERA_FIELDS(Sealed, a, b, c, d, e)
TESSERA_FIELDS(WorldDirective, a, b, c, d)
TESSERA_FIELDS(StepDone, a, b, c, d, e, f_, g, h, i, j, k, l, m, n, o, p, q, r)
TESSERA_FIELDS(StepDoneAck, a)
TESSERA_FIELDS(TrainerStatus, a, b, c, d, e, f_, g, h)
TESSERA_FIELDS(CheckpointFile, a, b, c, d, e, f_, g, h, i)
TESSERA_FIELDS(CheckpointFailed, a, b, c)
TESSERA_FIELDS(CheckpointPublished, a, b)
TESSERA_FIELDS(WriteShare, a, b, c)
TESSERA_FIELDS(LoaderHello, a, b, c, d, e)
TESSERA_FIELDS(LoaderWelcome, a, b, c, d, e, f_, g)
TESSERA_FIELDS(LoaderDataset, a, b, c, d, e, f_)
TESSERA_FIELDS(LoaderStatus, a, b, c, d, e, f_, g, h, i, j, k, l, m, n)
TESSERA_FIELDS(ShardAssignment, a, b)
TESSERA_FIELDS(TileRequest, a, b, c, d, e)
TESSERA_FIELDS(TileCancel, a)
TESSERA_FIELDS(TileHeader, a, b, c, d, e, f_, g, h, i, j, k, l, m, n, o, p, q, r)
TESSERA_FIELDS(TileFrame, a, b, c)
TESSERA_FIELDS(TileError, a, b, c)
TESSERA_FIELDS(SampleRequest, a, b, c)
TESSERA_FIELDS(SampleTile, a, b, c, d, e, f_)
TESSERA_NO_FIELDS(DatasetRequest)
TESSERA_FIELDS(DatasetInfo, a, b, c, d)

#undef TESSERA_FIELDS
#undef TESSERA_NO_FIELDS

template <typename T>
inline constexpr bool kIsVector = false;
template <typename T>
inline constexpr bool kIsVector<std::vector<T>> = true;
template <typename T>
inline constexpr bool kIsOptional = false;
template <typename T>
inline constexpr bool kIsOptional<std::optional<T>> = true;

// Any value of the type: every bit pattern of numbers (NaN too), short texts, lists of up to four.
template <typename T>
void fill(T& value, std::mt19937_64& draw) {
  if constexpr (std::is_same_v<T, bool>) {
    value = draw() & 1;
  } else if constexpr (std::is_same_v<T, double>) {
    value = std::bit_cast<double>(uint64_t(draw()));
  } else if constexpr (std::is_same_v<T, Phase>) {
    value = Phase(draw() % (uint64_t(Phase::kFinished) + 1));
  } else if constexpr (std::is_same_v<T, StateSource>) {
    value = StateSource(draw() % (uint64_t(StateSource::kPeer) + 1));
  } else if constexpr (std::is_integral_v<T>) {
    value = T(draw() >> draw() % 64);
    if constexpr (std::is_signed_v<T>) value = draw() & 1 ? T(-(value / 2)) : value;
  } else if constexpr (std::is_same_v<T, std::string>) {
    value.resize(draw() % 12);
    for (char& c : value) c = char(' ' + draw() % 95);
  } else if constexpr (kIsVector<T>) {
    value.resize(draw() % 5);
    for (auto& item : value) fill(item, draw);
  } else if constexpr (kIsOptional<T>) {
    value.reset();
    if (draw() & 1) fill(value.emplace(), draw);
  } else {
    visit_fields(value, [&draw](auto& field) { fill(field, draw); });
  }
}

// Bit for bit the same (so a NaN equals itself).
template <typename T>
bool same(const T& x, const T& y) {
  if constexpr (std::is_same_v<T, double>) {
    return std::bit_cast<uint64_t>(x) == std::bit_cast<uint64_t>(y);
  } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_same_v<T, std::string>) {
    return x == y;
  } else if constexpr (kIsVector<T>) {
    bool equal = x.size() == y.size();
    for (size_t i = 0; equal && i < x.size(); ++i) equal = same(x[i], y[i]);
    return equal;
  } else if constexpr (kIsOptional<T>) {
    return x.has_value() == y.has_value() && (!x || same(*x, *y));
  } else {
    std::vector<const void*> fields;
    visit_fields(y, [&](const auto& field) { fields.push_back(&field); });
    bool equal = true;
    size_t at = 0;
    visit_fields(x, [&](const auto& field) { equal = same(field, *static_cast<const std::decay_t<decltype(field)>*>(fields[at++])) && equal; });
    return equal;
  }
}

// The rules that decode() checks, established on a filled message.
inline void make_valid(TileHeader& h, std::mt19937_64& draw) {
  h.step = int64_t(draw() >> 20), h.tile = int32_t(draw() % 1000), h.epoch = int64_t(draw() % 1000);
  h.image_size = 16 + int32_t(draw() % 300), h.grid = 1 + int32_t(draw() % 16);
  h.context_length = int32_t(draw() % 9), h.target_length = int32_t(draw() % 9), h.frame_count = int32_t(draw() % 9);
  h.sample_ids.resize(1 + draw() % 4), h.crops.resize(h.sample_ids.size());
  h.pixel_bytes = int64_t(h.sample_ids.size()) * h.image_size * h.image_size * 3;
  for (auto* lists : {&h.contexts, &h.targets})
    for (auto& list : *lists) {
      list.resize(h.sample_ids.size() * size_t(lists == &h.contexts ? h.context_length : h.target_length));
      for (uint16_t& patch : list) patch = uint16_t(draw() % uint64_t(h.grid * h.grid));
    }
}
inline void make_valid(SampleTile& t, std::mt19937_64& draw) {
  t.keys.resize(t.sample_ids.size());
  t.labels.resize(t.sample_ids.size() * t.label_names.size());
  for (double& label : t.labels) fill(label, draw);
}
inline void make_valid(WorldStart& w, std::mt19937_64& draw) {
  for (size_t i = 0; i < w.members.size(); ++i) w.members[i].rank = Rank(i);
  w.start_step = int64_t(draw() >> 2), w.source_rank = Rank(draw() % (w.members.size() + 1)) - 1;
}
inline void make_valid(TileRequest& r, std::mt19937_64& draw) { r.step = int64_t(draw() >> 1), r.tile = int32_t(draw() >> 33), r.credit_bytes = int64_t(draw() >> 1); }
inline void make_valid(TileFrame& f, std::mt19937_64& draw) { f.index = int32_t(draw() >> 33), f.offset = int64_t(draw() >> 1); }
inline void make_valid(SampleRequest& r, std::mt19937_64& draw) {
  r.image_size = 1 + int32_t(draw() % 65536);
  for (SampleId& id : r.sample_ids) id = int64_t(draw() >> 1);
}
inline void make_valid(LoaderDataset& d, std::mt19937_64& draw) { d.sample_count = int64_t(draw() >> 1), d.shard_count = int64_t(draw() >> 30); }
inline void make_valid(DatasetInfo& d, std::mt19937_64& draw) { d.sample_count = int64_t(draw() >> 1); }
inline void make_valid(ShardAssignment& a, std::mt19937_64& draw) {
  for (auto& share : a.loaders) share.first_shard = int64_t(draw() >> 2), share.last_shard = share.first_shard + int64_t(draw() >> 2);
}
inline void make_valid(StepDone& s, std::mt19937_64& draw) { s.step = int64_t(draw() >> 1), s.images = int64_t(draw() >> 1); }
inline void make_valid(CheckpointFile& f, std::mt19937_64& draw) {
  f.step = int64_t(draw() >> 1), f.size_bytes = int64_t(draw() >> 1), f.world_size = 1 + int32_t(draw() % 1000), f.rank = int32_t(draw() % uint64_t(f.world_size));
}
template <typename T>
void make_valid(T&, std::mt19937_64&) {}

inline constexpr size_t kPayloads = std::variant_size_v<Payload>;

// A valid message with the payload of that index in Payload (1 ... kPayloads - 1).
template <size_t I = 1>
Payload random_payload(size_t index, std::mt19937_64& draw) {
  if constexpr (I < kPayloads) {
    if (index != I) return random_payload<I + 1>(index, draw);
    std::variant_alternative_t<I, Payload> message;
    fill(message, draw);
    make_valid(message, draw);
    return message;
  }
  return {};
}
inline Envelope random_envelope(size_t index, std::mt19937_64& draw) {
  Envelope e;
  fill(e.protocol, draw), fill(e.cluster_id, draw), fill(e.run_id, draw), fill(e.sender, draw), fill(e.incarnation, draw), fill(e.sequence, draw);
  e.payload = random_payload(index, draw);
  return e;
}
inline bool same_payload(const Payload& x, const Payload& y) {
  return x.index() == y.index() && std::visit([&](const auto& message) { return same(message, std::get<std::decay_t<decltype(message)>>(y)); }, x);
}

}  // namespace tessera::proto::test
