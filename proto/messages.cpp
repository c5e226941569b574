#include "proto/messages.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>

namespace tessera::proto {

Hash128 tile_digest(const TileHeader& h) {
  Hasher hasher;
  hasher.add_i64(h.step);
  hasher.add_i64(h.tile);
  hasher.add_i64(h.epoch);
  hasher.add_i64(h.image_size);
  hasher.add_i64(h.grid);
  hasher.add_i64(h.context_length);
  hasher.add_i64(h.target_length);
  hasher.add_u64(h.sample_ids.size());
  for (const SampleId id : h.sample_ids) hasher.add_i64(id);
  for (const CropBox& box : h.crops) {
    for (const int32_t side : {box.top, box.left, box.height, box.width}) hasher.add_i64(side);
    hasher.add_u64(box.flip);
  }
  for (const auto* lists : {&h.contexts, &h.targets}) {
    hasher.add_u64(lists->size());
    for (const auto& list : *lists) {
      hasher.add_u64(list.size());
      hasher.add_bytes(list.data(), list.size() * sizeof(uint16_t));
    }
  }
  hasher.add_u64(h.grey_samples.size());
  for (const SampleId id : h.grey_samples) hasher.add_i64(id);
  hasher.add_hash(h.pixel_hash);
  return hasher.finish();
}

WorldStart shorten(const WorldStart& full, const Generation& base, const std::vector<Member>& base_members) {
  WorldStart out = full;
  out.base = base;
  out.members.clear();
  std::map<WorkerId, const Member*> before, now;
  for (const Member& m : base_members) before[m.worker_id] = &m;
  for (const Member& m : full.members) now[m.worker_id] = &m;
  for (const auto& [id, member] : before)
    if (!now.contains(id)) out.removed.push_back(id);
  for (const auto& [id, member] : now)
    if (const auto old = before.find(id); old == before.end() || old->second->incarnation != member->incarnation || old->second->mesh_address != member->mesh_address) out.members.push_back(*member);
  return out;
}

WorldStart expand(WorldStart shortened, std::vector<Member> base_members) {
  const auto by_id = [](const Member& a, const Member& b) { return a.worker_id < b.worker_id; };
  std::vector<Member> changed = std::move(shortened.members);
  std::sort(changed.begin(), changed.end(), by_id);
  const std::set<WorkerId> removed(shortened.removed.begin(), shortened.removed.end());
  if (!removed.empty() || !changed.empty())
    std::erase_if(base_members, [&](const Member& m) { return removed.contains(m.worker_id) || std::binary_search(changed.begin(), changed.end(), m, by_id); });
  if (!std::is_sorted(base_members.begin(), base_members.end(), by_id)) std::sort(base_members.begin(), base_members.end(), by_id);
  shortened.members.clear(), shortened.removed.clear(), shortened.base.reset();
  shortened.members.reserve(base_members.size() + changed.size());
  std::merge(std::make_move_iterator(base_members.begin()), std::make_move_iterator(base_members.end()), std::make_move_iterator(changed.begin()), std::make_move_iterator(changed.end()),
             std::back_inserter(shortened.members), by_id);
  for (size_t i = 0; i < shortened.members.size(); ++i) shortened.members[i].rank = Rank(i);
  return shortened;
}

}  // namespace tessera::proto
