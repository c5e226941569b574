// tessera-sim: whole clusters under virtual time. `tessera-sim --seed 17 --trace` replays one, `--seeds 0:1000` sweeps.
#include <CLI/CLI.hpp>
#include <iostream>

#include "common/result.h"
#include "tests/sim/cluster.h"

namespace {

void print_shrunk(tessera::sim::Options options) {
  options.faults = tessera::sim::shrink(options);
  options.trace = true;
  const tessera::sim::Outcome out = tessera::sim::simulate(options);
  std::cout << "these faults are enough:\n";
  for (const auto& fault : *options.faults) std::cout << "  " << tessera::sim::describe(fault) << "\n";
  for (const auto& line : out.trace) std::cout << line << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  using namespace tessera;
  CLI::App app{"Simulates a Tessera cluster with drawn faults under virtual time"};
  sim::Options options;
  std::string seeds;
  bool shrinks = false;
  app.add_option("--seed", options.seed, "one simulation");
  app.add_option("--seeds", seeds, "FIRST:LAST, a sweep; stops at the first failure");
  app.add_option("--steps", options.steps, "steps of the run");
  app.add_option("--workers", options.workers, "workers");
  app.add_option("--faults", options.faults_per_second, "faults a second until the cluster heals");
  app.add_flag("--trace", options.trace, "print what happens");
  app.add_flag("--shrink", shrinks, "of a failure: find the few faults that it needs and print their trace");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  uint64_t first = options.seed, last = options.seed + 1;
  if (!seeds.empty()) {
    const size_t colon = seeds.find(':');
    if (colon == std::string::npos) return std::cerr << "tessera-sim: --seeds FIRST:LAST, for instance --seeds 0:1000\n", exit_codes::kUsage;
    first = std::strtoull(seeds.c_str(), nullptr, 10), last = std::strtoull(seeds.c_str() + colon + 1, nullptr, 10);
  }
  int64_t faults = 0, generations = 0;
  for (uint64_t seed = first; seed < last; ++seed) {
    options.seed = seed;
    const sim::Outcome out = sim::simulate(options);
    for (const auto& line : out.trace) std::cout << line << "\n";
    faults += out.faults, generations += out.generations;
    if (!out.ok) {
      std::cout << "seed " << seed << ": " << out.violation << "\nreplay: tessera-sim --seed " << seed << " --workers " << options.workers << " --steps " << options.steps << " --faults " << options.faults_per_second << " --trace, or --shrink\n";
      if (shrinks) print_shrunk(options);
      return 1;
    }
  }
  std::cout << last - first << " simulations, " << faults << " faults, " << generations << " generations: every step committed once, nothing violated\n";
  return 0;
}
