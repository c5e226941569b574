// `tessera bench kernels`: the operations of a step one by one, at a model's own shapes: which product or kernel is far
// from what the device can do. On a GPU also the update, whose bound is the memory.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/randn.h>
#include <algorithm>

#include "common/clock.h"
#include "worker/model/backend.h"
#include "worker/model/networks.h"
#include "worker/optimizer/update.h"
#include "worker/tool/bench_parts.h"

namespace tessera::tool {
namespace {

using nlohmann::json;
using namespace tessera::model;

struct Bench {
  const FunctionConfig& f;
  std::string device;
  int64_t repeats;
  State state;
  FlatBuffers gradient;
  std::unique_ptr<Ops> ops;
  json rows = json::array();

  void wait() const {
    if (is_cuda(device)) backend()->wait();
  }
  at::Tensor random(int64_t rows_count, int64_t columns) const { return at::randn({rows_count, columns}, at::TensorOptions().dtype(at::kFloat).device(c10::Device(device))); }
  at::Tensor inner(const at::Tensor& x) const { return is_cuda(device) && f.precision != "fp32" ? x.to(at::kBFloat16) : x; }

  template <typename Work>
  double seconds_of(const Work& work) const {
    work(), wait();
    std::vector<double> times;
    for (int64_t i = 0; i < repeats; ++i) {
      const double start = monotonic_seconds();
      work(), wait();
      times.push_back(monotonic_seconds() - start);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
  template <typename Work>
  void add(const std::string& what, const std::string& shape, double flops, double bytes, const Work& work) {
    const double seconds = seconds_of(work);
    json row{{"what", what}, {"shape", shape}, {"microseconds", 1e6 * seconds}};
    if (flops > 0) row["tflops"] = flops / seconds / 1e12;
    if (bytes > 0) row["gigabytes_per_second"] = bytes / seconds / 1e9;
    rows.push_back(row);
  }
};

// One block's operations over `sequences` of n tokens.
void block_rows(Bench& b, const std::string& where, const BlockPlaces& p, int64_t sequences, int64_t n, int64_t d, int64_t hidden, int64_t heads) {
  const int64_t r = sequences * n;
  const Weights w{b.state.weights, &b.state.weights_half};
  const auto shape = [&](int64_t in, int64_t out) { return std::to_string(r) + " x " + std::to_string(in) + " -> " + std::to_string(out); };
  const at::Tensor stream = b.random(r, d), normed = b.inner(stream), wide = b.inner(b.random(r, hidden)), qkv = b.inner(b.random(r, 3 * d)), dqkv = b.inner(b.random(r, 3 * d));
  const auto product = [&](const std::string& name, LinearPlaces places, const at::Tensor& x, const at::Tensor& dy, int64_t out) {
    const double flops = 2.0 * double(r) * double(x.size(1)) * double(out);
    b.add(where + " " + name, shape(x.size(1), out), flops, 0, [&] { (void)b.ops->linear(w, x, places, LinearFor::kAttention); });
    b.add(where + " " + name + " backward", shape(x.size(1), out), 2 * flops, 0, [&] { (void)b.ops->linear_backward(w, x, Flow(dy), places, b.gradient, true); });
  };
  product("qkv", p.qkv, normed, dqkv, 3 * d);
  product("proj", p.proj, normed, normed, d);
  product("fc1", p.fc1, normed, wide, hidden);
  product("fc2", p.fc2, wide, normed, d);
  const double attention = 4.0 * double(sequences) * double(n) * double(n) * double(d);
  const std::string heads_text = std::to_string(sequences) + " x " + std::to_string(heads) + " x " + std::to_string(n) + " x " + std::to_string(d / heads);
  Attention kept = b.ops->attend(qkv, {sequences, heads}, true);
  b.add(where + " attention", heads_text, attention, 0, [&] { (void)b.ops->attend(qkv, {sequences, heads}, true); });
  b.add(where + " attention backward", heads_text, 2.5 * attention, 0, [&] { (void)b.ops->attend_backward(qkv, kept, normed, {sequences, heads}); });
  const double width = double(normed.element_size()), floats = double(r) * double(d);
  const Norm norm = b.ops->norm(w, stream, p.norm1, NormFor::kProduct);
  b.add(where + " norm", std::to_string(r) + " x " + std::to_string(d), 0, floats * (4 + width), [&] { (void)b.ops->norm(w, stream, p.norm1, NormFor::kProduct); });
  b.add(where + " norm backward", std::to_string(r) + " x " + std::to_string(d), 0, floats * (12 + 2 * width), [&] { (void)b.ops->norm_backward(w, stream, norm, normed, stream, p.norm1, b.gradient); });
}

}  // namespace

Result<json> bench_kernels(const FunctionConfig& f, const std::string& device, int64_t repeats) {
  at::NoGradGuard no_grad;
  TESSERA_TRY(prepare_device(device, &f));
  Bench b{f, device, repeats, to_device(State::initial(f), f.precision, device), {}, nullptr, json::array()};
  b.gradient = make_buffers(b.state.layout, device);
  TESSERA_ASSIGN(b.ops, make_ops(b.state.layout, f.precision, device));
  const int64_t images = f.batch.tile_size, patches = f.model.grid() * f.model.grid(), kept = std::max<int64_t>(1, patches * 26 / 100), wanted = std::max<int64_t>(1, patches * 175 / 1000);
  const EncoderPlaces encoder = encoder_places(b.state.layout);
  const PredictorPlaces predictor = predictor_places(b.state.layout);
  block_rows(b, "target", encoder.blocks[0], images, patches, f.model.embed_dim, f.model.hidden_dim(), f.model.num_heads);
  block_rows(b, "context", encoder.blocks[0], images, kept, f.model.embed_dim, f.model.hidden_dim(), f.model.num_heads);
  block_rows(b, "predictor", predictor.blocks[0], 4 * images, kept + wanted, f.predictor.embed_dim, int64_t(double(f.predictor.embed_dim) * f.predictor.mlp_ratio), f.predictor.num_heads);
  if (is_cuda(device)) {
    double trained = 0;
    for (const auto& buffer : b.gradient) trained += double(buffer.numel());
    const double averaged = double(b.state.layout.target_floats), halves = f.precision == "fp32" ? 0 : 2;
    b.add("update", std::to_string(int64_t(trained)), 0, trained * (28 + halves) + averaged * (8 + halves), [&] { optimizer::apply_with_target(b.state, b.gradient, 1.0f, {1e-4, 0.04, 0.996}, f.optimizer); });
    b.add("state digest", std::to_string(int64_t(trained)), 0, 12 * trained + 4 * averaged, [&] { (void)b.state.digest(); });
    b.add("gradient digest and norm", std::to_string(int64_t(trained)), 0, 4 * trained, [&] { (void)backend()->examine(b.state.layout, b.gradient); });
    const at::Tensor from = b.random(1, 1 << 28), to = at::empty_like(from);
    b.add("copy", std::to_string(1 << 28), 0, 8.0 * double(1 << 28), [&] { to.copy_(from); });
  }
  return json{{"kernels", b.rows}, {"settings", {{"model", f.model.name}, {"tile", images}, {"precision", f.precision}, {"device", device}, {"repeats", repeats}}}};
}

}  // namespace tessera::tool
