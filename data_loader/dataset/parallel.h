// Runs a function over 0 .. count-1 on a few threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "common/result.h"

namespace tessera::data {

// Calls work(i) for every i, on up to `threads` threads (the caller's is one of them). After an error no new index is
// started; the error of the lowest index that failed is returned, so that a bad dataset gives the same sentence whatever
// the threads (all indices below it were started).
inline Status parallel_for(int64_t count, int threads, const std::function<Status(int64_t)>& work) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::optional<std::pair<int64_t, Error>> first;
  const auto run = [&] {
    while (!failed.load(std::memory_order_relaxed)) {
      const int64_t i = next.fetch_add(1);
      if (i >= count) return;
      if (Status status = work(i); !status) {
        failed = true;
        std::lock_guard lock(mutex);
        if (!first || i < first->first) first = {i, std::move(status).error()};
      }
    }
  };
  std::vector<std::jthread> helpers;
  const int64_t helper_count = std::min<int64_t>(threads, count) - 1;
  for (int64_t t = 0; t < helper_count; ++t) helpers.emplace_back(run);
  run();
  helpers.clear();
  if (first) return tl::unexpected<Error>(std::move(first->second));
  return {};
}

}  // namespace tessera::data
