#include "worker/evaluate/picture_decoder.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <cmath>
#include <cstring>
#include <numbers>

#include "common/hash.h"
#include "common/philox.h"
#include "common/safetensors.h"
#include "worker/evaluate/adamw.h"
#include "worker/evaluate/labelled.h"

namespace tessera::evaluate {
namespace {

constexpr int64_t kChannels = 48, kTold = 128, kTimeWaves = 16, kFold = 2, kGroups = 8;
constexpr double kWeightDecay = 0.01, kWarmup = 0.05, kMostAverage = 0.999;
constexpr uint32_t kWeightStream = 0xFFFFFFFFu, kTimeStream = 0xFFFFFFFEu, kNoiseStream = 0xFFFFFFFDu, kOrderStream = 0xFFFFFFFCu;  // above any draw

// Standard normal by Box-Muller, in pairs.
void fill_normal(float* out, int64_t count, PhiloxStream& random) {
  for (int64_t i = 0; i < count; i += 2) {
    const double radius = std::sqrt(-2 * std::log(1 - random.next_double())), angle = 2 * std::numbers::pi * random.next_double();
    out[i] = float(radius * std::cos(angle));
    if (i + 1 < count) out[i + 1] = float(radius * std::sin(angle));
  }
}

at::Tensor noise(int64_t b, int64_t seed, uint32_t stream, int64_t first) {
  at::Tensor out = at::empty({b, 3, kDecoderSide, kDecoderSide}, at::kFloat);
  const int64_t each = out.numel() / std::max<int64_t>(1, b);
  for (int64_t i = 0; i < b; ++i) {
    PhiloxStream random(uint64_t(seed), Purpose::kDecoder, uint64_t(first + i), stream);
    fill_normal(out.mutable_data_ptr<float>() + i * each, each, random);
  }
  return out;
}

// Times are squares of uniform ones: a block's mean colour is settled while it is still nine tenths noise.
double warped(double u) { return u * u; }

// Waves of t beside the condition, as a table of transformers' positions does.
at::Tensor time_waves(const at::Tensor& t_b) {
  const at::Tensor angle = t_b.unsqueeze(1) * at::exp2(at::arange(kTimeWaves, at::kFloat) * 0.5).unsqueeze(0);
  return at::cat({angle.sin(), angle.cos()}, 1);
}

struct Convolution {
  const char* name;
  int64_t in, out, kernel;
};
constexpr Convolution kConvolutions[] = {{"enter", 3 * kFold * kFold, kChannels, 3}, {"down", kChannels, 2 * kChannels, 1}, {"up", 2 * kChannels, kChannels, 1}, {"join", 2 * kChannels, kChannels, 1},
                                         {"leave", kChannels, 3 * kFold * kFold, 3}};
struct Residual {
  const char* name;
  int64_t channels;
};
constexpr Residual kResiduals[] = {{"fine1", kChannels}, {"fine2", kChannels}, {"coarse1", 2 * kChannels}, {"coarse2", 2 * kChannels}, {"coarse3", 2 * kChannels}, {"fine3", kChannels}, {"fine4", kChannels}};

std::map<std::string, at::Tensor> initial_weights(int64_t condition, int64_t seed) {
  std::map<std::string, at::Tensor> out;
  const auto add = [&](const std::string& name, at::IntArrayRef shape, double deviation, double constant = 0) {
    at::Tensor w = at::full(shape, constant, at::kFloat);
    PhiloxStream random(uint64_t(seed), Purpose::kDecoder, hash_bytes(name.data(), name.size()).low, kWeightStream);
    if (deviation > 0) fill_normal(w.mutable_data_ptr<float>(), w.numel(), random), w.mul_(deviation);
    out[name] = w;
  };
  const auto add_convolution = [&](const std::string& name, int64_t in, int64_t to, int64_t kernel, double scale) {
    add(name + ".weight", {to, in, kernel, kernel}, scale / std::sqrt(double(in * kernel * kernel)));
    add(name + ".bias", {to}, 0);
  };
  for (const Convolution& c : kConvolutions) add_convolution(c.name, c.in, c.out, c.kernel, std::string(c.name) == "leave" ? 0 : 1);
  for (const Residual& r : kResiduals) {
    const std::string name = r.name;
    add_convolution(name + ".first", r.channels, r.channels, 3, 1);
    add_convolution(name + ".second", r.channels, r.channels, 3, 0);  // each block begins as the identity
    for (const char* norm : {".norm1", ".norm2"}) add(name + norm + ".weight", {r.channels}, 0, 1), add(name + norm + ".bias", {r.channels}, 0);
    add(name + ".told.weight", {2 * r.channels, kTold}, 0.02), add(name + ".told.bias", {2 * r.channels}, 0);
  }
  const int64_t in = condition + 2 * kTimeWaves;
  add("tell1.weight", {kTold, in}, 1 / std::sqrt(double(in))), add("tell1.bias", {kTold}, 0);
  add("tell2.weight", {kTold, kTold}, 1 / std::sqrt(double(kTold))), add("tell2.bias", {kTold}, 0);
  add("last.weight", {kChannels}, 0, 1), add("last.bias", {kChannels}, 0);
  return out;
}

bool is_statistic(const std::string& name) { return name.starts_with("condition."); }

// Rows of a step, with replacement.
std::vector<int64_t> rows_of_step(int64_t n, int64_t batch, int64_t step, int64_t seed) {
  std::vector<int64_t> rows;
  PhiloxStream random(uint64_t(seed), Purpose::kDecoder, uint64_t(step), kOrderStream);
  for (int64_t i = 0; i < std::min(batch, n); ++i) rows.push_back(random.next_below(uint32_t(n)));
  return rows;
}

}  // namespace

int64_t PictureDecoder::condition_size() const { return weights_.at("condition.mean").numel(); }

at::Tensor PictureDecoder::normal(const at::Tensor& condition_be) const { return (condition_be - weights_.at("condition.mean")) * weights_.at("condition.scale"); }

at::Tensor PictureDecoder::weight(const std::string& name, const at::Tensor& like) const { return weights_.at(name).to(like.scalar_type()); }

at::Tensor PictureDecoder::convolve(const std::string& name, const at::Tensor& x_bchw) const {
  const at::Tensor w = weight(name + ".weight", x_bchw);
  const int64_t padding = w.size(2) / 2;
  return at::conv2d(x_bchw, w, weight(name + ".bias", x_bchw), {1, 1}, {padding, padding});
}

at::Tensor PictureDecoder::residual(const std::string& name, const at::Tensor& x_bchw, const at::Tensor& told_be) const {
  const auto norm = [&](const at::Tensor& x, const char* which) {
    return at::group_norm(x, kGroups, weight(name + which + ".weight", x), weight(name + which + ".bias", x));
  };
  const at::Tensor told = at::linear(told_be, weights_.at(name + ".told.weight"), weights_.at(name + ".told.bias")).unsqueeze(2).unsqueeze(3).to(x_bchw.scalar_type());
  const int64_t c = x_bchw.size(1);
  at::Tensor y = convolve(name + ".first", at::silu(norm(x_bchw, ".norm1")));
  y = norm(y, ".norm2") * (told.narrow(1, 0, c) + 1) + told.narrow(1, c, c);
  return x_bchw + convolve(name + ".second", at::silu(y));
}

at::Tensor PictureDecoder::velocity(const at::Tensor& x_bchw, const at::Tensor& t_b, const at::Tensor& condition_be) const {
  at::Tensor told = at::cat({condition_be, time_waves(t_b)}, 1);
  told = at::silu(at::linear(told, weights_.at("tell1.weight"), weights_.at("tell1.bias")));
  told = at::silu(at::linear(told, weights_.at("tell2.weight"), weights_.at("tell2.bias")));
  const at::Tensor fine = residual("fine2", residual("fine1", convolve("enter", at::pixel_unshuffle(x_bchw, kFold)), told), told);
  at::Tensor coarse = convolve("down", at::avg_pool2d(fine, {2, 2}));
  for (const char* name : {"coarse1", "coarse2", "coarse3"}) coarse = residual(name, coarse, told);
  const at::Tensor up = at::upsample_nearest2d(convolve("up", coarse), {fine.size(2), fine.size(3)});
  at::Tensor y = convolve("join", at::cat({fine, up}, 1));
  y = residual("fine4", residual("fine3", y, told), told);
  return at::pixel_shuffle(convolve("leave", at::silu(at::group_norm(y, kGroups, weight("last.weight", y), weight("last.bias", y)))), kFold);
}

PictureDecoder PictureDecoder::train(const DecoderPairs& pairs, const DecoderTraining& o, const std::function<void(int64_t, double)>& progress) {
  const int64_t n = pairs.condition_be.size(0);
  PictureDecoder net, average;
  net.weights_ = initial_weights(pairs.condition_be.size(1), o.seed);
  AdamW optimizer(kWeightDecay);
  for (auto& [name, w] : net.weights_) average.weights_[name] = w.clone(), optimizer.add(w);
  const at::Tensor mean = pairs.condition_be.mean(0), deviation = (pairs.condition_be - mean).square().mean(0).sqrt();
  for (PictureDecoder* one : {&net, &average}) one->weights_["condition.mean"] = mean, one->weights_["condition.scale"] = deviation.clamp_min(1e-6).reciprocal();
  const at::ScalarType compute = __builtin_cpu_supports("avx512bf16") ? at::kBFloat16 : at::kFloat;
  const int64_t every = std::max<int64_t>(1, o.steps / 20);
  double recent = 0;
  for (int64_t step = 0; step < o.steps; ++step) {
    const at::Tensor rows = rows_tensor(rows_of_step(n, o.batch, step, o.seed));
    const at::Tensor x = pairs.pictures_bhwc.index_select(0, rows).permute({0, 3, 1, 2}).to(at::kFloat).div(127.5).sub(1).contiguous();
    const at::Tensor start = noise(x.size(0), o.seed, kNoiseStream, step * o.batch);
    at::Tensor t = at::empty({x.size(0)}, at::kFloat);
    PhiloxStream random(uint64_t(o.seed), Purpose::kDecoder, uint64_t(step), kTimeStream);
    for (int64_t i = 0; i < x.size(0); ++i) t.mutable_data_ptr<float>()[i] = float(warped(double(random.next_float())));
    const at::Tensor wide = t.view({-1, 1, 1, 1}), x_t = start + wide * (x - start);
    const at::Tensor guess = net.velocity(x_t.to(compute), t, net.normal(pairs.condition_be.index_select(0, rows))).to(at::kFloat);
    const at::Tensor loss = at::mse_loss(guess, x - start);
    loss.backward();
    optimizer.update(cosine_rate(o.lr, step, o.steps, kWarmup));
    at::NoGradGuard no_grad;
    const double keep = std::min(kMostAverage, double(step + 1) / double(step + 10));
    for (auto& [name, w] : average.weights_)
      if (!is_statistic(name)) w.mul_(keep).add_(net.weights_.at(name), 1 - keep);
    recent += loss.item<double>();
    if ((step + 1) % every != 0) continue;
    average.final_loss_ = recent / double(every);
    progress(step + 1, average.final_loss_);
    recent = 0;
  }
  return average;
}

at::Tensor PictureDecoder::draw(const at::Tensor& condition_be, int64_t seed, int64_t draw, int64_t first, int64_t steps) const {
  at::NoGradGuard no_grad;
  const int64_t b = condition_be.size(0);
  at::Tensor x = noise(b, seed, uint32_t(draw), first);
  const at::Tensor condition = normal(condition_be);
  for (int64_t i = 0; i < steps; ++i) {  // midpoints: a second-order step needs half as many of them
    const double t = warped(double(i) / double(steps)), h = warped(double(i + 1) / double(steps)) - t;
    const at::Tensor middle = x + velocity(x, at::full({b}, t, at::kFloat), condition) * (h / 2);
    x = x + velocity(middle, at::full({b}, t + h / 2, at::kFloat), condition) * h;
  }
  return x.add(1).mul(127.5).add(0.5).clamp(0, 255).to(at::kByte).permute({0, 2, 3, 1}).contiguous();
}

Status PictureDecoder::save(const std::string& path, const std::string& encoder_digest, const std::map<std::string, std::string>& notes) const {
  std::vector<TensorView> tensors;
  for (const auto& [name, w] : weights_) tensors.push_back({name, "F32", w.sizes().vec(), w.const_data_ptr<float>(), w.numel() * 4});
  std::map<std::string, std::string> metadata = notes;
  metadata["format"] = "tessera picture decoder 1";
  metadata["encoder_digest"] = encoder_digest;
  metadata["final_loss"] = std::to_string(final_loss_);
  return write_safetensors(path, tensors, metadata).map([](const WrittenFile&) {});
}

Result<PictureDecoder> PictureDecoder::load(const std::string& path, const std::string& encoder_digest) {
  auto opened = SafetensorsFile::open(path);
  if (!opened) return fail(ErrorCode::kFixData, "no decoder at " + path + ": " + opened.error().message + "; tessera visualize train-decoder makes one");
  const SafetensorsFile& file = *opened;
  const auto note = [&](const char* key) { return file.metadata().contains(key) ? file.metadata().at(key) : std::string(); };
  if (note("format") != "tessera picture decoder 1") return fail(ErrorCode::kFixData, path + " is no picture decoder of this version; tessera visualize train-decoder makes one");
  if (note("encoder_digest") != encoder_digest)
    return fail(ErrorCode::kFixData, "the decoder " + path + " was trained for another encoder: state digest " + note("encoder_digest") + ", not this model's " + encoder_digest +
                                         "; train one for it with tessera visualize train-decoder");
  PictureDecoder out;
  const TensorView* mean = file.find("condition.mean");
  if (mean == nullptr || mean->shape.size() != 1) return fail(ErrorCode::kFixData, path + " lacks condition.mean: it is damaged");
  Weights expected = initial_weights(mean->shape[0], 0);
  expected["condition.mean"] = expected["condition.scale"] = at::empty({mean->shape[0]}, at::kFloat);
  for (const auto& [name, like] : expected) {
    const TensorView* stored = file.find(name);
    if (stored == nullptr || stored->dtype != "F32" || stored->shape != like.sizes().vec()) return fail(ErrorCode::kFixData, path + ": " + name + " is missing or has another shape");
    out.weights_[name] = at::empty(like.sizes(), at::kFloat);
    std::memcpy(out.weights_[name].mutable_data_ptr(), stored->data, size_t(stored->size_bytes));
  }
  out.final_loss_ = std::atof(note("final_loss").c_str());
  return out;
}

}  // namespace tessera::evaluate
