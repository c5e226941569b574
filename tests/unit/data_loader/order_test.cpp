#include "data_loader/order/order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

namespace tessera::data {
namespace {

FunctionConfig config(const std::string& shuffle, int64_t seed = 3) {
  FunctionConfig f;
  f.seed = seed;
  f.data.shuffle = shuffle;
  f.batch.tile_size = 4, f.batch.tiles = 3;
  return f;
}

// Random block sizes (some empty) that add up to count.
std::vector<SampleId> blocks_of(int64_t count, std::mt19937& random) {
  std::vector<SampleId> first{0};
  while (true) {
    const int64_t next = first.back() + int64_t(random() % 97);
    if (next >= count) return first;
    first.push_back(next);
  }
}

TEST(Order, EachSampleOncePerEpoch) {
  std::mt19937 random(1);
  std::vector<int64_t> counts(300);
  std::iota(counts.begin(), counts.end(), 1);
  for (const int64_t large : {1000, 1023, 1024, 1025, 4097, 20000, 65537}) counts.push_back(large);
  for (const std::string shuffle : {"global", "block"})
    for (const int64_t n : counts) {
      const EpochOrder order(config(shuffle, n), n, blocks_of(n, random), n % 7);
      std::vector<uint8_t> seen(size_t(n), 0);
      for (int64_t p = 0; p < n; ++p) {
        const SampleId s = order.sample_at(p);
        ASSERT_TRUE(s >= 0 && s < n) << shuffle << " n " << n << " position " << p;
        ASSERT_EQ(seen[size_t(s)]++, 0) << shuffle << " n " << n << " position " << p;
        if (n < 300 || p % 37 == 0) { ASSERT_EQ(order.position_of(s), p) << shuffle << " n " << n; }
      }
    }
}

TEST(Order, HugeCountsInConstantMemory) {
  for (const uint64_t n : {uint64_t{1281167}, uint64_t{1000000000}, uint64_t{1} << 40}) {
    const Permutation permutation(n, 5, Purpose::kShuffle, 2);
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < 20000; ++i) {
      const uint64_t at = i * (n / 20000), value = permutation(at);
      ASSERT_LT(value, n);
      ASSERT_TRUE(seen.insert(value).second);
      ASSERT_EQ(permutation.inverse(value), at);
    }
  }
}

TEST(Order, EpochsSeedsAndStreamsDiffer) {
  const auto list = [](uint64_t seed, uint32_t epoch, uint32_t stream) {
    const Permutation p(5000, seed, Purpose::kShuffle, epoch, stream);
    std::vector<uint64_t> out;
    for (uint64_t i = 0; i < 5000; ++i) out.push_back(p(i));
    return out;
  };
  const auto base = list(1, 0, 0);
  EXPECT_EQ(base, list(1, 0, 0));
  for (const auto& other : {list(2, 0, 0), list(1, 1, 0), list(1, 0, 1), list(uint64_t{1} << 32 | 1, 0, 0)}) {
    int equal = 0;
    for (size_t i = 0; i < base.size(); ++i) equal += base[i] == other[i];
    EXPECT_LT(equal, 12);  // one is expected of two random permutations
  }
}

double chi_square(const std::vector<int>& counts, double expected) {
  double sum = 0;
  for (const int c : counts) sum += (c - expected) * (c - expected) / expected;
  return sum;
}
// 99.999 % point of chi-square with k degrees of freedom (Wilson and Hilferty).
double chi_square_limit(double k) { return k * std::pow(1 - 2 / (9 * k) + 4.265 * std::sqrt(2 / (9 * k)), 3); }

// Permutations of 4 samples over many epochs: all 24 equally often.
TEST(Order, SmallPermutationsAreUniform) {
  std::map<std::vector<uint64_t>, int> times;
  const int epochs = 24000;
  for (int e = 0; e < epochs; ++e) {
    const Permutation p(4, 9, Purpose::kShuffle, uint32_t(e));
    ++times[{p(0), p(1), p(2), p(3)}];
  }
  ASSERT_EQ(times.size(), 24u);
  std::vector<int> counts;
  for (const auto& [order, n] : times) counts.push_back(n);
  EXPECT_LT(chi_square(counts, epochs / 24.0), chi_square_limit(23));
}

// Where a sample goes, and how far neighbours land from each other, as in a random permutation.
TEST(Order, PlacesAndNeighboursAreUniform) {
  for (const uint64_t n : {uint64_t{50}, uint64_t{60000}, uint64_t{1281167}}) {
    const int bins = 50, draws = 60000;
    std::vector<int> places(bins, 0), gaps(bins, 0);
    for (int d = 0; d < draws; ++d) {
      const Permutation p(n, 4, Purpose::kShuffle, uint32_t(d / 100));
      const uint64_t i = uint64_t(d) * 7919 % (n - 1), a = p(i), b = p(i + 1);
      ++places[size_t(a * bins / n)];
      ++gaps[size_t((b + n - a - 1) % n * bins / n)];  // b - a - 1 mod n: uniform over [0, n-1)
    }
    EXPECT_LT(chi_square(places, double(draws) / bins), chi_square_limit(bins - 1)) << n;
    if (n > 1000) { EXPECT_LT(chi_square(gaps, double(draws) / bins), chi_square_limit(bins - 1)) << n; }
  }
}

TEST(Order, BlockShuffleKeepsFewBlocksOpen) {
  std::mt19937 random(2);
  const int64_t n = 50000;
  const auto first = blocks_of(n, random);
  const EpochOrder order(config("block"), n, first, 1);
  const auto block_of = [&](SampleId s) { return std::upper_bound(first.begin(), first.end(), s) - first.begin() - 1; };
  std::map<int64_t, std::pair<int64_t, int64_t>> span;  // block -> first and last position
  for (int64_t p = 0; p < n; ++p) {
    auto [it, fresh] = span.try_emplace(block_of(order.sample_at(p)), p, p);
    it->second.second = p;
  }
  std::vector<std::pair<int64_t, int>> edges;
  for (const auto& [block, range] : span) edges.push_back({range.first, 1}), edges.push_back({range.second + 1, -1});
  std::sort(edges.begin(), edges.end());
  int open = 0, most = 0;
  for (const auto& [at, change] : edges) most = std::max(most, open += change);
  EXPECT_LE(most, EpochOrder::kWindowBlocks);
  EXPECT_GT(most, EpochOrder::kWindowBlocks / 2);
  EXPECT_NE(block_of(order.sample_at(0)), block_of(order.sample_at(1)) + block_of(order.sample_at(2)));  // and mixes them
}

// The same promises at a thousand million samples, where no list of them is made.
TEST(Order, BlockShuffleOfAThousandMillion) {
  const int64_t n = 1'000'000'000, block = 10'007;
  std::vector<SampleId> first;
  for (int64_t b = 0; b < n; b += block) first.push_back(b);
  const EpochOrder order(config("block"), n, first, 4);
  std::set<SampleId> seen;
  std::mt19937_64 random(3);
  for (int i = 0; i < 300; ++i) {
    const int64_t position = i == 0 ? 0 : i == 1 ? n - 1 : int64_t(random() % uint64_t(n));
    const SampleId sample = order.sample_at(position);
    ASSERT_TRUE(sample >= 0 && sample < n);
    ASSERT_TRUE(seen.insert(sample).second || i > 1);
    ASSERT_EQ(order.position_of(sample), position);
  }
  // A step's worth of neighbours comes from few blocks, wherever it begins.
  for (int i = 0; i < 20; ++i) {
    const int64_t begin = int64_t(random() % uint64_t(n - 4096));
    std::set<int64_t> open;
    for (int64_t p = begin; p < begin + 4096; ++p) open.insert(order.sample_at(p) / block);
    EXPECT_LE(int(open.size()), 2 * EpochOrder::kWindowBlocks);
    EXPECT_GE(int(open.size()), EpochOrder::kWindowBlocks - 1);
  }
}

// What is counted of a permutation, of ours and of std::shuffle's with the same number of draws: fixed points (Poisson 1),
// inversions (normal around n(n-1)/4), cycles (around ln n + 0.58). Ours must be where theory has them, as the other is.
TEST(Order, CountsAsOfTrueRandomPermutations) {
  const int n = 300, draws = 600;
  for (const bool ours : {true, false}) {
    std::mt19937 random(12);
    double fixed = 0, inversions = 0, cycles = 0;
    for (int d = 0; d < draws; ++d) {
      std::vector<int> p(static_cast<size_t>(n));
      std::iota(p.begin(), p.end(), 0);
      const Permutation permutation(uint64_t(n), 77, Purpose::kShuffle, uint32_t(d));
      if (ours) for (int i = 0; i < n; ++i) p[size_t(i)] = int(permutation(uint64_t(i)));
      else std::shuffle(p.begin(), p.end(), random);
      std::vector<bool> visited(size_t(n), false);
      for (int i = 0; i < n; ++i) {
        fixed += p[size_t(i)] == i;
        for (int j = i + 1; j < n; ++j) inversions += p[size_t(i)] > p[size_t(j)];
        if (visited[size_t(i)]) continue;
        ++cycles;
        for (int at = i; !visited[size_t(at)]; at = p[size_t(at)]) visited[size_t(at)] = true;
      }
    }
    const double harmonic = std::log(n) + 0.5772 + 0.5 / n, variance = n * (n - 1.0) * (2.0 * n + 5) / 72;
    EXPECT_NEAR(fixed / draws, 1, 4.5 / std::sqrt(draws)) << ours;
    EXPECT_NEAR(inversions / draws, n * (n - 1) / 4.0, 4.5 * std::sqrt(variance / draws)) << ours;
    EXPECT_NEAR(cycles / draws, harmonic, 4.5 * std::sqrt((harmonic - 1.645) / draws)) << ours;
  }
}

// Block shuffle: where a block's window stands in the epoch, and where a sample stands in its window, are uniform, and a
// sample has other neighbours every epoch.
TEST(Order, BlockShuffleIsUniformInItsWindows) {
  const int64_t n = 64'000, block = 100;  // 640 blocks, 40 windows of 16
  std::vector<SampleId> first;
  for (int64_t b = 0; b < n; b += block) first.push_back(b);
  const int64_t window = block * EpochOrder::kWindowBlocks;
  const int bins = 40, epochs = 12;
  std::vector<int> windows(bins, 0), places(bins, 0);
  int same_neighbour = 0, draws = 0;
  std::vector<SampleId> before;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    const EpochOrder order(config("block", 9), n, first, epoch);
    std::vector<SampleId> behind(size_t(n), -1);
    for (int64_t p = 0; p + 1 < n; ++p) behind[size_t(order.sample_at(p))] = order.sample_at(p + 1);
    for (SampleId sample = 13; sample < n; sample += 4 * block, ++draws) {
      const int64_t position = order.position_of(sample);
      ++windows[size_t(position / window)], ++places[size_t(position % window * bins / window)];
      same_neighbour += !before.empty() && before[size_t(sample)] == behind[size_t(sample)];
    }
    before = std::move(behind);
  }
  EXPECT_LT(chi_square(windows, double(draws) / bins), chi_square_limit(bins - 1));
  EXPECT_LT(chi_square(places, double(draws) / bins), chi_square_limit(bins - 1));
  EXPECT_LT(same_neighbour, 5) << "of " << draws;
}

TEST(Order, StepsCoverAnEpochUpToItsTail) {
  const FunctionConfig f = config("global");
  const int64_t n = 130, steps_per_epoch = n / f.batch.global();  // 10 steps of 12, a tail of 10
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    const EpochOrder order(f, n, {}, epoch);
    std::set<SampleId> seen;
    int64_t expected = 0;
    for (Step k = epoch * steps_per_epoch; k < (epoch + 1) * steps_per_epoch; ++k)
      for (TileIndex t = 0; t < f.batch.tiles; ++t) {
        const TilePlace place = tile_place(f, steps_per_epoch, k, t);
        ASSERT_EQ(place.epoch, epoch);
        ASSERT_EQ(place.first_position, expected);
        expected += f.batch.tile_size;
        for (const SampleId s : tile_samples(f, order, place)) ASSERT_TRUE(seen.insert(s).second);
      }
    EXPECT_EQ(seen.size(), 120u);
  }
}

}  // namespace
}  // namespace tessera::data
