#include "worker/evaluate/knn.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "common/clock.h"
#include "common/log.h"
#include "worker/model/parallel.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kQueryBlock = 128, kBankBlock = 2048, kScan = 16;

at::Tensor unit_rows(const at::Tensor& rows_nd) {
  const at::Tensor rows = rows_nd.to(at::kFloat);
  return (rows / rows.square().sum(1, true).sqrt().clamp_min(1e-12)).contiguous();
}

struct Candidate {
  float similarity;
  int64_t row;
};
bool nearer(const Candidate& a, const Candidate& b) { return a.similarity > b.similarity || (a.similarity == b.similarity && a.row < b.row); }

// The best k of a stream of similarities that arrive in order of row: what is above the k-th so far is kept, and the
// list is cut back when it is four times too long. An equal one that comes later never enters, so ties go to the smaller row.
class Best {
 public:
  explicit Best(int64_t k) : k_(size_t(k)) { list_.reserve(4 * k_ + size_t(kScan)); }

  void add(const float* similarity, int64_t first_row, int64_t count) {
    int64_t j = 0;
    for (; j + kScan <= count; j += kScan) {
      int above = 0;
      for (int64_t t = 0; t < kScan; ++t) above |= similarity[j + t] > threshold_;
      if (above) take(similarity + j, first_row + j, kScan);
    }
    take(similarity + j, first_row + j, count - j);
  }
  void finish(int64_t* rows, float* similarities) {
    cut();
    std::sort(list_.begin(), list_.end(), nearer);
    for (size_t i = 0; i < k_; ++i) rows[i] = list_[i].row, similarities[i] = list_[i].similarity;
  }

 private:
  void take(const float* similarity, int64_t first_row, int64_t count) {
    for (int64_t t = 0; t < count; ++t)
      if (similarity[t] > threshold_) list_.push_back({similarity[t], first_row + t});
    if (list_.size() >= 4 * k_) cut();
  }
  void cut() {
    if (list_.size() <= k_) return;
    std::nth_element(list_.begin(), list_.begin() + int64_t(k_) - 1, list_.end(), nearer);
    list_.resize(k_);
    threshold_ = list_.back().similarity;
  }

  size_t k_;
  std::vector<Candidate> list_;
  float threshold_ = -std::numeric_limits<float>::infinity();
};

nlohmann::ordered_json scores_by_k(const FeaturePair& pair, const Target& target, const std::vector<int64_t>& ks) {
  const Nearest found = nearest(pair.test_nd, pair.train_nd, *std::max_element(ks.begin(), ks.end()));
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const int64_t k : ks)
    out[std::to_string(k)] = {{"weighted", accuracy(vote(found, target.train, target.classes, k, Vote::kWeighted), target.test)},
                              {"majority", accuracy(vote(found, target.train, target.classes, k, Vote::kMajority), target.test)}};
  return out;
}

nlohmann::ordered_json knn_entry(const Labelled& data, const std::string& label, const std::vector<int64_t>& ks, int64_t main_k) {
  const Target& target = data.targets.at(label);
  const auto main_of = [&](const nlohmann::ordered_json& by_k) { return by_k[std::to_string(main_k)]["weighted"].get<double>(); };
  const auto error_of = [&](double p) { return std::sqrt(p * (1 - p) / double(target.test.size())); };
  const nlohmann::ordered_json by_k = scores_by_k(data.features.at("model"), target, ks);
  nlohmann::ordered_json out{{"metric", "accuracy"}, {"value", main_of(by_k)}, {"standard_error", error_of(main_of(by_k))}, {"classes", target.classes}, {"k", main_k}, {"by_k", by_k}};
  if (!target.edges.empty()) out["bin_edges"] = target.edges;
  for (const std::string name : {"random_init", "pixels"}) {
    if (!data.features.contains(name)) continue;
    const nlohmann::ordered_json scores = scores_by_k(data.features.at(name), target, ks);
    out["baselines"][name] = main_of(scores);
    out["baseline_standard_errors"][name] = error_of(main_of(scores));
    out["baselines_by_k"][name] = scores;
  }
  return out;
}

}  // namespace

Nearest nearest(const at::Tensor& queries_qd, const at::Tensor& bank_nd, int64_t k) {
  at::NoGradGuard no_grad;
  const at::Tensor queries = unit_rows(queries_qd), bank = unit_rows(bank_nd);
  const int64_t q = queries.size(0), n = bank.size(0);
  TESSERA_CHECK(k >= 1 && k <= n, "k within the bank");
  Nearest out{q, k, std::vector<int64_t>(size_t(q * k)), std::vector<float>(size_t(q * k))};
  // Threads share out blocks of queries; a block's products run in one thread, so bits do not depend on how many there are.
  at::parallel_for(0, (q + kQueryBlock - 1) / kQueryBlock, 1, [&](int64_t begin, int64_t end) {
    at::NoGradGuard no_grad_here;
    at::Tensor buffer = at::empty({kQueryBlock * kBankBlock}, queries.options());
    for (int64_t first = begin * kQueryBlock; first < std::min(q, end * kQueryBlock); first += kQueryBlock) {
      const int64_t rows = std::min(kQueryBlock, q - first);
      std::vector<Best> best(static_cast<size_t>(rows), Best(k));
      for (int64_t from = 0; from < n; from += kBankBlock) {
        const int64_t columns = std::min(kBankBlock, n - from);
        at::Tensor similarity_qn = buffer.narrow(0, 0, rows * columns).view({rows, columns});
        at::mm_out(similarity_qn, queries.narrow(0, first, rows), bank.narrow(0, from, columns).t());
        for (int64_t i = 0; i < rows; ++i) best[size_t(i)].add(similarity_qn.const_data_ptr<float>() + i * columns, from, columns);
      }
      for (int64_t i = 0; i < rows; ++i) best[size_t(i)].finish(&out.index_qk[size_t((first + i) * k)], &out.similarity_qk[size_t((first + i) * k)]);
    }
  });
  return out;
}

std::vector<int64_t> vote(const Nearest& nearest, const std::vector<int64_t>& bank_labels, int64_t classes, int64_t k, Vote rule) {
  TESSERA_CHECK(k >= 1 && k <= nearest.k, "k within what was searched");
  std::vector<int64_t> out;
  std::vector<double> weight(static_cast<size_t>(classes), 0.0);
  for (int64_t i = 0; i < nearest.queries; ++i) {
    const int64_t* rows = &nearest.index_qk[size_t(i * nearest.k)];
    const float* similarity = &nearest.similarity_qk[size_t(i * nearest.k)];
    std::fill(weight.begin(), weight.end(), 0.0);
    for (int64_t j = 0; j < k; ++j) weight[size_t(bank_labels[size_t(rows[j])])] += rule == Vote::kMajority ? 1.0 : std::exp(double(similarity[j]) / kVoteTemperature);
    int64_t winner = bank_labels[size_t(rows[0])];
    for (int64_t j = 1; j < k; ++j)
      if (const int64_t label = bank_labels[size_t(rows[j])]; weight[size_t(label)] > weight[size_t(winner)]) winner = label;
    out.push_back(winner);
  }
  return out;
}

Result<nlohmann::ordered_json> evaluate_knn(const LoadedModel& model, const EvaluationOptions& o, std::vector<int64_t> ks) {
  const Millis start = monotonic_ms();
  TESSERA_ASSIGN(const std::vector<Labelled> all, read_labelled(model, o, {o.seed}));
  const Labelled& data = all[0];
  const int64_t bank = int64_t(data.train_ids.size());
  if (ks.empty()) {
    for (const int64_t k : {10, 20, 100, 200})
      if (k <= bank) ks.push_back(k);
  }
  std::sort(ks.begin(), ks.end());
  if (ks.back() > bank)
    return fail(ErrorCode::kFixData, "--k " + std::to_string(ks.back()) + " asks for more neighbours than the " + std::to_string(bank) + " training images of " + o.data);
  const int64_t main_k = std::find(ks.begin(), ks.end(), 20) != ks.end() ? 20 : ks.front();
  nlohmann::ordered_json probes = nlohmann::ordered_json::object();
  for (const auto& [label, target] : data.targets) {
    probes[label] = knn_entry(data, label, ks, main_k);
    log_info("{}: {:.1f} %", label, 100 * probes[label]["value"].get<double>());
  }
  nlohmann::ordered_json out{{"schema", 1}};
  for (const auto& [key, value] : probes[data.main_label()].items()) out[key] = value;
  out["label"] = data.main_label();
  out["probes"] = probes;
  out["settings"] = common_settings("knn", model, o, data);
  out["settings"]["temperature"] = kVoteTemperature;
  out["settings"]["k"] = ks;
  out["settings"]["seconds"] = double(monotonic_ms() - start) / 1000.0;
  return out;
}

}  // namespace tessera::evaluate
