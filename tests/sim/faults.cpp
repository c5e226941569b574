#include <algorithm>
#include <cmath>

#include "common/hash.h"
#include "tests/sim/cluster.h"

namespace tessera::sim {
namespace {

const char* const kNames[kFaultKinds] = {"crash", "hang", "pause", "slow", "daemon crash", "loader crash", "coordinator crash", "coordinator crash amid effects", "clock jump",
                                         "cut to the coordinator", "cut from the coordinator", "lossy control link", "mesh cut", "disk full"};
// Crashes are the daily bread; the others are rarer in life.
const int kWeights[kFaultKinds] = {8, 3, 3, 2, 2, 2, 3, 2, 1, 2, 2, 2, 2, 1};

}  // namespace

std::string describe(const Fault& f) {
  std::string text = std::string(kNames[int(f.kind)]) + " at " + std::to_string(f.at) + " ms, node " + std::to_string(f.target);
  return f.length > 0 ? text + ", for " + std::to_string(f.length) + " ms" : text;
}

std::vector<Fault> draw_faults(const Options& o) {
  std::vector<Fault> out;
  if (o.faults_per_second <= 0) return out;
  uint64_t count = 0;
  const auto draw = [&](int64_t low, int64_t high) { return low + int64_t(mix64(mix64(o.seed + 0x5eed) ^ mix64(++count)) % uint64_t(high - low + 1)); };
  int total = 0;
  for (const int weight : kWeights) total += weight;
  for (Millis at = 0;;) {
    at += Millis(1000.0 / std::max(0.01, o.faults_per_second)) * draw(20, 200) / 100;
    if (at >= o.heal_at_ms) return out;
    int kind = 0;
    for (int64_t ticket = draw(0, total - 1); ticket >= kWeights[kind]; ++kind) ticket -= kWeights[kind];
    Fault fault{at, FaultKind(kind), int(draw(0, 999)), 0};
    const bool lasts = fault.kind == FaultKind::kPause || fault.kind == FaultKind::kSlow || fault.kind >= FaultKind::kClock;
    if (lasts) fault.length = draw(50, draw(0, 3) == 0 ? 8000 : 1500);
    out.push_back(fault);
  }
}

std::vector<Fault> shrink(const Options& options) {
  Options o = options;
  o.trace = false;
  std::vector<Fault> faults = o.faults ? *o.faults : draw_faults(o);
  const auto fails = [&](const std::vector<Fault>& some) {
    o.faults = some;
    return !simulate(o).ok;
  };
  for (size_t piece = std::max<size_t>(1, faults.size() / 2);; piece = std::max<size_t>(1, piece / 2)) {
    bool smaller = false;
    for (size_t first = 0; first < faults.size();) {
      std::vector<Fault> without = faults;
      without.erase(without.begin() + int64_t(first), without.begin() + int64_t(std::min(faults.size(), first + piece)));
      if (fails(without)) faults = std::move(without), smaller = true;
      else first += piece;
    }
    if (piece == 1 && !smaller) return faults;
  }
}

}  // namespace tessera::sim
