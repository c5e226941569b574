// Seconds of one exact nearest-neighbour search and its two votes: knn_bench [queries bank channels k threads].
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <cstdio>
#include <cstdlib>

#include "common/clock.h"
#include "worker/evaluate/knn.h"

int main(int argc, char** argv) {
  using namespace tessera;
  const auto argument = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const int64_t queries = argument(1, 10000), bank = argument(2, 50000), d = argument(3, 192), k = argument(4, 200);
  at::set_num_threads(int(argument(5, 2)));
  setenv("MKL_CBWR", "AVX2", 1);  // as tessera-model
  auto random = at::make_generator<at::CPUGeneratorImpl>(1);
  const at::Tensor q = at::randn({queries, d}, random, at::kFloat), b = at::randn({bank, d}, random, at::kFloat);
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < bank; ++i) labels.push_back(i % 10);
  for (int repeat = 0; repeat < 3; ++repeat) {
    const double start = monotonic_seconds();
    const evaluate::Nearest found = evaluate::nearest(q, b, k);
    const double searched = monotonic_seconds();
    evaluate::vote(found, labels, 10, k, evaluate::Vote::kWeighted);
    evaluate::vote(found, labels, 10, k, evaluate::Vote::kMajority);
    std::printf("%ld queries, %ld x %ld, k %ld: search %.2f s, votes %.2f s\n", long(queries), long(bank), long(d), long(k), searched - start, monotonic_seconds() - searched);
  }
}
