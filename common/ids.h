// Strong types for the words of the glossary (docs/glossary.md).
#pragma once

#include <compare>
#include <cstdint>
#include <string>

namespace tessera {

// Version of the world. term grows with every coordinator start (claimed by exclusive create), number within a term.
// Ordered; {0, 0} is "none". Printed as "term.number".
struct Generation {
  uint64_t term = 0;
  uint64_t number = 0;
  auto operator<=>(const Generation&) const = default;
};
inline std::string to_string(const Generation& g) { return std::to_string(g.term) + "." + std::to_string(g.number); }

using Step = int64_t;       // optimizer updates done before it; counts from 0 over the whole run
using TileIndex = int32_t;  // 0 .. tiles-1 within a step
using Rank = int32_t;       // position of a worker in one generation
using SampleId = int64_t;   // index in the dataset's manifest
using WorkerId = std::string;  // stable across restarts: machine id + device slot, e.g. "node-a/0"
using Millis = int64_t;     // milliseconds of a monotonic clock; the simulator's or the machine's

// Half-open range of tile indices that a rank evaluates.
struct TileRange {
  TileIndex begin = 0;
  TileIndex end = 0;
  bool empty() const { return begin >= end; }
  int size() const { return end > begin ? end - begin : 0; }
  bool operator==(const TileRange&) const = default;
};

}  // namespace tessera
