#include "worker/evaluate/attentive.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <cmath>
#include <numeric>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/philox.h"
#include "worker/evaluate/adamw.h"
#include "worker/evaluate/logistic.h"

namespace tessera::evaluate {
namespace {

constexpr double kLearningRates[] = {3e-4, 1e-3, 3e-3}, kWeightDecay = 0.05, kWarmup = 0.1;
constexpr uint32_t kOrderStream = 400, kSplitStream = 401;

class AttentiveProbe {
 public:
  AttentiveProbe(int64_t d, int64_t heads, int64_t classes, int64_t seed) : heads_(heads), d_(d), random_(at::make_generator<at::CPUGeneratorImpl>(uint64_t(seed))) {
    query_ = add({1, d}, 0.02), key_ = add({d, d}, 0.02), value_ = add({d, d}, 0.02), out_ = add({d, d}, 0.02);
    norm1_w_ = add({d}, 0), norm2_w_ = add({d}, 0), fc1_w_ = add({d, 2 * d}, 0.02), fc2_w_ = add({2 * d, d}, 0.02), head_w_ = add({d, classes}, 0.02);
    value_b_ = add({d}, 0), out_b_ = add({d}, 0), norm1_b_ = add({d}, 0), norm2_b_ = add({d}, 0), fc1_b_ = add({2 * d}, 0), fc2_b_ = add({d}, 0), head_b_ = add({classes}, 0);
    at::NoGradGuard no_grad;
    norm1_w_.fill_(1), norm2_w_.fill_(1);
  }

  at::Tensor logits(const at::Tensor& x_bkd) const {
    const int64_t b = x_bkd.size(0), dh = d_ / heads_;
    // Scores of head h: x_k . (K_h^T q_h); the bias of keys would shift all k alike and cancels in the softmax.
    const at::Tensor look_dh = at::einsum("he,dhe->dh", {query_.view({heads_, dh}), key_.view({d_, heads_, dh})}).mul(1.0 / std::sqrt(double(dh)));
    const at::Tensor attention_bkh = at::softmax(x_bkd.matmul(look_dh), 1);
    const at::Tensor mean_bhd = attention_bkh.transpose(1, 2).matmul(x_bkd);
    const at::Tensor read = at::einsum("bhd,dhe->bhe", {mean_bhd, value_.view({d_, heads_, dh})}).reshape({b, d_}) + value_b_;
    at::Tensor y = query_ + at::addmm(out_b_, read, out_);
    y = y + at::addmm(fc2_b_, at::gelu(at::addmm(fc1_b_, at::layer_norm(y, {d_}, norm1_w_, norm1_b_), fc1_w_)), fc2_w_);
    return at::addmm(head_b_, at::layer_norm(y, {d_}, norm2_w_, norm2_b_), head_w_);
  }

  void update(double lr) { optimizer_.update(lr); }

 private:
  at::Tensor add(at::IntArrayRef shape, double deviation) {
    return optimizer_.add(deviation > 0 ? at::randn(shape, random_, at::kFloat).mul_(deviation) : at::zeros(shape, at::kFloat));
  }

  int64_t heads_, d_;
  at::Generator random_;
  AdamW optimizer_{kWeightDecay};
  at::Tensor query_, key_, value_, value_b_, out_, out_b_, norm1_w_, norm1_b_, norm2_w_, norm2_b_, fc1_w_, fc1_b_, fc2_w_, fc2_b_, head_w_, head_b_;
};

struct Scale {  // per channel over all patches
  at::Tensor mean_d, scale_d;
  explicit Scale(const at::Tensor& x_nkd) {
    mean_d = x_nkd.mean(at::IntArrayRef{0, 1});
    const at::Tensor square = at::zeros_like(mean_d);
    for (int64_t i = 0; i < x_nkd.size(0); i += 256) square.add_((x_nkd.narrow(0, i, std::min<int64_t>(256, x_nkd.size(0) - i)) - mean_d).square_().sum(at::IntArrayRef{0, 1}));
    scale_d = (square / double(x_nkd.size(0) * x_nkd.size(1))).sqrt().clamp_min(1e-6).reciprocal();
  }
  at::Tensor operator()(const at::Tensor& x_bkd) const { return (x_bkd - mean_d).mul_(scale_d); }
};

ptrdiff_t best_of(const std::vector<double>& scores) { return std::max_element(scores.begin(), scores.end()) - scores.begin(); }

struct AttentiveScore {
  double accuracy = 0, standard_error = 0, lr = 0;
};

AttentiveScore score(const FeaturePair& pair, const Target& target, int64_t model_heads, const AttentiveOptions& o, int64_t seed) {
  const int64_t heads = pair.train_nd.size(2) % model_heads == 0 ? model_heads : 1;
  std::vector<int64_t> fit, held;
  for (int64_t i = 0; i < pair.train_nd.size(0); ++i)
    (PhiloxStream(uint64_t(seed), Purpose::kProbe, uint64_t(i), kSplitStream).next_below(5) == 0 ? held : fit).push_back(i);
  const at::Tensor fit_nkd = pair.train_nd.index_select(0, rows_tensor(fit)), held_nkd = pair.train_nd.index_select(0, rows_tensor(held));
  std::vector<double> scores;
  for (const double lr : kLearningRates)
    scores.push_back(accuracy(attentive_probe(fit_nkd, pick(target.train, fit), target.classes, held_nkd, heads, lr, o, seed), pick(target.train, held)));
  const double lr = kLearningRates[best_of(scores)];
  const double p = accuracy(attentive_probe(pair.train_nd, target.train, target.classes, pair.test_nd, heads, lr, o, seed), target.test);
  return {p, std::sqrt(p * (1 - p) / double(target.test.size())), lr};
}

Status check_memory(const LoadedModel& model, const EvaluationOptions& o) {
  constexpr double kLimit = 6.0 * (1 << 30);
  const auto& m = model.function.model;
  const double each = double(m.grid() * m.grid()) * double(o.baselines ? 2 * m.embed_dim + kPatchPixels : m.embed_dim) * 4 * 2;  // twice: chunks and their whole
  if (double(o.train_images + o.test_images) * each <= kLimit) return {};
  return fail(ErrorCode::kUsage, "the patches of " + std::to_string(o.train_images + o.test_images) + " images need " + human_bytes(int64_t(double(o.train_images + o.test_images) * each)) + "; at most " +
                                     std::to_string(int64_t(kLimit / each)) + " images fit: lower --train-images and --test-images, or take --no-baselines");
}

}  // namespace

std::vector<int64_t> attentive_probe(const at::Tensor& train_nkd, const std::vector<int64_t>& labels, int64_t classes, const at::Tensor& test_nkd, int64_t heads, double lr,
                                     const AttentiveOptions& o, int64_t seed) {
  const Scale scale(train_nkd);
  AttentiveProbe probe(train_nkd.size(2), heads, classes, seed);
  const int64_t n = train_nkd.size(0), steps_per_epoch = (n + o.batch - 1) / o.batch, total = o.epochs * steps_per_epoch;
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  int64_t step = 0;
  for (int64_t epoch = 0; epoch < o.epochs; ++epoch) {
    PhiloxStream random(uint64_t(seed), Purpose::kProbe, uint64_t(epoch), kOrderStream);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.next_below(uint32_t(i))]);
    for (int64_t first = 0; first < n; first += o.batch) {
      const std::vector<int64_t> rows(order.begin() + first, order.begin() + std::min(n, first + o.batch));
      at::cross_entropy_loss(probe.logits(scale(train_nkd.index_select(0, rows_tensor(rows)))), rows_tensor(pick(labels, rows))).backward();
      probe.update(cosine_rate(lr, step++, total, kWarmup));
    }
  }
  at::NoGradGuard no_grad;
  std::vector<int64_t> out;
  for (int64_t first = 0; first < test_nkd.size(0); first += o.batch) {
    const at::Tensor best = probe.logits(scale(test_nkd.narrow(0, first, std::min(o.batch, test_nkd.size(0) - first)))).argmax(1);
    out.insert(out.end(), best.const_data_ptr<int64_t>(), best.const_data_ptr<int64_t>() + best.numel());
  }
  return out;
}

Result<nlohmann::ordered_json> evaluate_attentive(const LoadedModel& model, const EvaluationOptions& options, const AttentiveOptions& attentive) {
  const Millis start = monotonic_ms();
  EvaluationOptions o = options;
  o.pooling = Pooling::kPatches;
  TESSERA_TRY(check_memory(model, o));
  TESSERA_ASSIGN(const std::vector<Labelled> all, read_labelled(model, o, {o.seed}));
  const Labelled& data = all[0];
  const int64_t heads = model.function.model.num_heads;
  nlohmann::ordered_json probes = nlohmann::ordered_json::object();
  for (const auto& [label, target] : data.targets) {
    const AttentiveScore s = score(data.features.at("model"), target, heads, attentive, o.seed);
    nlohmann::ordered_json entry{{"metric", "accuracy"}, {"value", s.accuracy}, {"standard_error", s.standard_error}, {"classes", target.classes}, {"lr", s.lr}};
    if (!target.edges.empty()) entry["bin_edges"] = target.edges;
    for (const std::string name : {"random_init", "pixels"}) {
      if (!data.features.contains(name)) continue;
      const AttentiveScore b = score(data.features.at(name), target, heads, attentive, o.seed);
      entry["baselines"][name] = b.accuracy;
      entry["baseline_standard_errors"][name] = b.standard_error;
    }
    log_info("{}: {:.1f} %", label, 100 * s.accuracy);
    probes[label] = entry;
  }
  nlohmann::ordered_json out{{"schema", 1}};
  for (const auto& [key, value] : probes[data.main_label()].items()) out[key] = value;
  out["label"] = data.main_label();
  out["probes"] = probes;
  out["settings"] = common_settings("attentive", model, o, data);
  out["settings"]["epochs"] = attentive.epochs;
  out["settings"]["batch"] = attentive.batch;
  out["settings"]["seconds"] = double(monotonic_ms() - start) / 1000.0;
  return out;
}

}  // namespace tessera::evaluate
