#include "worker/trainer/vote.h"

#include <map>

namespace tessera::trainer {
namespace {

std::string ranks_text(const std::vector<Rank>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) text += (i ? ", " : "") + std::to_string(ranks[i]);
  return text;
}

// Of two ranks that hold different states: the only one whose own changed while the step was evaluated.
void find_changed(const std::vector<Vote>& votes, Disagreement& out) {
  std::vector<Rank> changed;
  for (size_t r = 0; r < votes.size(); ++r)
    if (votes[r].applied != StateDigest{} && votes[r].applied != votes[r].state) changed.push_back(Rank(r));
  if (changed.size() != 1) return;
  out.suspect = changed.front();
  out.reason += "; the state of rank " + std::to_string(out.suspect) + " changed while the step was evaluated";
}

// Groups the ranks by digest; one group is agreement.
bool differs(const std::vector<Vote>& votes, StateDigest Vote::*field, const std::string& what, Disagreement& out) {
  std::map<std::pair<uint64_t, uint64_t>, std::vector<Rank>> groups;
  for (size_t r = 0; r < votes.size(); ++r) groups[{(votes[r].*field).a, (votes[r].*field).b}].push_back(Rank(r));
  if (groups.size() == 1) return false;
  const std::vector<Rank>*most = nullptr, *least = nullptr;
  for (const auto& [digest, ranks] : groups) {
    if (!most || ranks.size() > most->size()) most = &ranks;
    if (!least || ranks.size() <= least->size()) least = &ranks;
  }
  out.suspect = most->size() > least->size() ? least->front() : -1;
  out.reason = ranks_text(*least) + (least->size() == 1 ? " holds another " : " hold another ") + what + " of step " + std::to_string(votes[0].step) + " than " + ranks_text(*most);
  return true;
}

}  // namespace

tl::expected<Agreement, Disagreement> tally(const std::vector<Vote>& votes) {
  Disagreement no;
  Agreement yes;
  for (size_t r = 0; r < votes.size(); ++r) {
    const Vote& v = votes[r];
    if (v.term != votes[0].term || v.number != votes[0].number || v.step != votes[0].step) {
      no.suspect = Rank(r);
      no.reason = "rank " + std::to_string(r) + " votes for step " + std::to_string(v.step) + " of generation " + std::to_string(v.term) + "." + std::to_string(v.number) +
                  ", rank 0 for step " + std::to_string(votes[0].step) + " of " + std::to_string(votes[0].term) + "." + std::to_string(votes[0].number);
      return tl::unexpected(no);
    }
    yes.batch += v.batch;
  }
  if (differs(votes, &Vote::state, "state", no)) {
    if (no.suspect < 0) find_changed(votes, no);
    return tl::unexpected(no);
  }
  if (differs(votes, &Vote::gradient, "gradient", no)) return tl::unexpected(no);
  yes.stop_after = votes[0].stop_after;
  yes.checkpoint = votes[0].checkpoint != 0;
  yes.acknowledged = votes[0].acknowledged;
  return yes;
}

}  // namespace tessera::trainer
