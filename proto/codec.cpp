#include "proto/codec.h"

#include <google/protobuf/stubs/logging.h>
#include <initializer_list>

#include "proto/codec_payloads.h"

namespace tessera::proto {
namespace {

constexpr int32_t kLargestImageSize = 1 << 16;

struct Put {
  wire::Envelope* w;
  void operator()(std::monostate) const {}
#define TESSERA_PUT(Name, field, number) \
  void operator()(const Name& s) const { put(s, w->mutable_##field()); }
  TESSERA_PAYLOADS(TESSERA_PUT)
#undef TESSERA_PUT
};

struct NameOf {
  const char* operator()(std::monostate) const { return "nothing"; }
#define TESSERA_NAME(Name, field, number) \
  const char* operator()(const Name&) const { return #Name; }
  TESSERA_PAYLOADS(TESSERA_NAME)
#undef TESSERA_NAME
};

bool get_payload(const wire::Envelope& w, Payload* out) {
  switch (w.payload_case()) {
#define TESSERA_GET(Name, field, number)                 \
  case wire::Envelope::number:                           \
    get(w.field(), &out->emplace<tessera::proto::Name>()); \
    return true;
    TESSERA_PAYLOADS(TESSERA_GET)
#undef TESSERA_GET
    case wire::Envelope::PAYLOAD_NOT_SET: return false;
  }
  return false;
}

// Checks: what the receiver may rely on without looking again.

tl::unexpected<Error> bad(const char* payload, const std::string& what) {
  return fail(ErrorCode::kFixData, std::string("[proto] ") + payload + ": " + what);
}
bool negative(std::initializer_list<int64_t> values) {
  for (const int64_t value : values)
    if (value < 0) return true;
  return false;
}

// Patch indices are 16 bits wide in memory and 32 on the wire.
Status check_wire(const wire::Envelope& w) {
  if (!w.has_tile_header()) return {};
  for (const auto* lists : {&w.tile_header().contexts(), &w.tile_header().targets()})
    for (const auto& list : *lists)
      for (const uint32_t patch : list.patches())
        if (patch > 0xFFFFu) return bad("TileHeader", "a mask names patch " + std::to_string(patch));
  return {};
}

Status check(const TileHeader& h) {
  const size_t images = h.sample_ids.size();
  if (images == 0 || h.crops.size() != images) return bad("TileHeader", "crops and samples differ in number");
  if (negative({h.step, h.tile, h.epoch, h.context_length, h.target_length, h.pixel_bytes, h.frame_count})) return bad("TileHeader", "a negative size");
  if (h.image_size <= 0 || h.image_size > kLargestImageSize || h.grid <= 0 || h.grid > h.image_size) return bad("TileHeader", "image_size or grid out of range");
  if (h.pixel_bytes != int64_t(images) * h.image_size * h.image_size * 3) return bad("TileHeader", "pixel_bytes do not fit the images");
  const int64_t patches = int64_t{h.grid} * h.grid;
  for (const auto* lists : {&h.contexts, &h.targets}) {
    const size_t length = images * size_t(lists == &h.contexts ? h.context_length : h.target_length);
    for (const auto& list : *lists) {
      if (list.size() != length) return bad("TileHeader", "a mask list has another length than its header says");
      for (const uint16_t patch : list)
        if (patch >= patches) return bad("TileHeader", "a mask names a patch outside the grid");
    }
  }
  return {};
}
Status check(const TileRequest& r) {
  if (negative({r.step, r.tile, r.credit_bytes})) return bad("TileRequest", "a negative step, tile or credit");
  return {};
}
Status check(const TileFrame& f) {
  if (negative({f.index, f.offset})) return bad("TileFrame", "a negative index or offset");
  return {};
}
Status check(const SampleRequest& r) {
  if (r.image_size <= 0 || r.image_size > kLargestImageSize) return bad("SampleRequest", "image_size out of range");
  for (const SampleId id : r.sample_ids)
    if (id < 0) return bad("SampleRequest", "a negative sample id");
  return {};
}
Status check(const SampleTile& t) {
  if (t.labels.size() != t.sample_ids.size() * t.label_names.size() || t.keys.size() != t.sample_ids.size()) return bad("SampleTile", "keys or labels do not fit the samples");
  return {};
}
Status check(const LoaderDataset& d) {
  if (negative({d.sample_count, d.shard_count}) || d.shard_count > int64_t{1} << 40) return bad("LoaderDataset", "sample_count or shard_count out of range");
  return {};
}
Status check(const DatasetInfo& d) {
  if (d.sample_count < 0) return bad("DatasetInfo", "a negative sample_count");
  return {};
}
Status check(const ShardAssignment& a) {
  for (const auto& share : a.loaders)
    if (share.first_shard < 0 || share.first_shard > share.last_shard) return bad("ShardAssignment", "a share that is no range of shards");
  return {};
}
Status check(const TrainerStatus& s) {
  if (int32_t(s.phase) < 0 || s.phase > Phase::kFinished) return bad("TrainerStatus", "unknown phase");
  return {};
}
Status check(const StepDone& s) {
  if (negative({s.step, s.images})) return bad("StepDone", "a negative step or number of images");
  return {};
}
Status check(const CheckpointFile& f) {
  if (negative({f.step, f.size_bytes, f.rank}) || f.rank >= f.world_size) return bad("CheckpointFile", "step, size or rank out of range");
  return {};
}
Status check(const WorldStart& s) {
  if (int32_t(s.source) < 0 || s.source > StateSource::kPeer) return bad("WorldStart", "unknown source of state");
  if (s.start_step < 0) return bad("WorldStart", "a negative start_step");
  if (s.base) return s.source_rank < -1 ? bad("WorldStart", "source_rank is no member") : Status{};  // the rest is known when it is expanded
  if (!s.removed.empty()) return bad("WorldStart", "members are removed from no generation");
  if (s.source_rank < -1 || s.source_rank >= Rank(s.members.size())) return bad("WorldStart", "source_rank is no member");
  for (size_t i = 0; i < s.members.size(); ++i)
    if (s.members[i].rank != Rank(i)) return bad("WorldStart", "members are not in rank order");
  return {};
}
template <typename T>
Status check(const T&) {
  return {};
}

// Length of the UTF-8 sequence at `at`, 0 if there is none (overlong forms, surrogates and cut-off ends included).
size_t sequence_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(at), second = byte(at + 1);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead <= 0xDF ? 2 : lead >= 0xE0 && lead <= 0xEF ? 3 : lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool outside = (lead == 0xED && second > 0x9F) || (lead == 0xF4 && second > 0x8F);
  return overlong || outside ? 0 : length;
}

}  // namespace

std::string utf8(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t length = sequence_length(text, at);
    if (length == 0) out += '?', ++at;
    else out.append(text, at, length), at += length;
  }
  return out;
}

std::string encode(const Envelope& e) {
  wire::Envelope w;
  w.set_protocol(e.protocol);
  w.set_cluster_id(e.cluster_id);
  w.set_run_id(e.run_id);
  w.set_sender(e.sender);
  w.set_incarnation(e.incarnation);
  w.set_sequence(e.sequence);
  std::visit(Put{&w}, e.payload);
  return w.SerializeAsString();
}

Result<Envelope> decode(std::string_view bytes) {
  // Protobuf would print a line for every text that is not UTF-8: a peer must not be able to fill the log.
  [[maybe_unused]] static const auto before = google::protobuf::SetLogHandler(nullptr);
  wire::Envelope w;
  if (bytes.size() > size_t{1} << 30 || !w.ParseFromArray(bytes.data(), int(bytes.size())))
    return fail(ErrorCode::kFixData, "[proto] " + std::to_string(bytes.size()) + " bytes are no Tessera message");
  TESSERA_TRY(check_wire(w));
  Envelope e;
  e.protocol = w.protocol();
  e.cluster_id = w.cluster_id();
  e.run_id = w.run_id();
  e.sender = w.sender();
  e.incarnation = w.incarnation();
  e.sequence = w.sequence();
  if (!get_payload(w, &e.payload)) return fail(ErrorCode::kFixData, "[proto] a message without a payload that this version knows");
  TESSERA_TRY(std::visit([](const auto& payload) { return check(payload); }, e.payload));
  return e;
}

const char* payload_name(const Payload& payload) { return std::visit(NameOf{}, payload); }

}  // namespace tessera::proto
