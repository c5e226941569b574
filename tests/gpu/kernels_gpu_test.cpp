// Every kernel on the GPU beside the same body walked on the CPU: bit-equal where no erf or exp is involved.
#include <random>

#include "tests/gpu/gpu.h"
#include "tests/unit/cuda/host_executor.h"
#include "worker/cuda/kernels.h"

namespace tessera::cuda {
namespace {

template <typename T>
class Both {
 public:
  explicit Both(std::vector<T> values) : host(std::move(values)) {
    cudaMalloc(&device_, host.size() * sizeof(T));
    cudaMemcpy(device_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Both() { cudaFree(device_); }
  Both(const Both&) = delete;
  Both& operator=(const Both&) = delete;
  T* on_device() { return static_cast<T*>(device_); }
  std::vector<T> back() {
    std::vector<T> out(host.size());
    cudaDeviceSynchronize();
    cudaMemcpy(out.data(), device_, out.size() * sizeof(T), cudaMemcpyDeviceToHost);
    return out;
  }
  std::vector<T> host;

 private:
  void* device_ = nullptr;
};

class KernelsGpu : public test::Gpu {
 protected:
  std::vector<float> random(int64_t n) {
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> out(static_cast<size_t>(n));
    for (float& x : out) x = normal(engine_);
    return out;
  }
  std::vector<Half> random_half(int64_t n) {
    const auto from = random(n);
    std::vector<Half> out(from.size());
    for (size_t i = 0; i < out.size(); ++i) put(out[i], from[i]);
    return out;
  }
  std::mt19937 engine_{3};
};

void expect_same(const std::vector<Half>& got, const std::vector<Half>& want, float tolerance = 0) {
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(to_float(got[i]), to_float(want[i]), tolerance * (1 + std::fabs(to_float(want[i])))) << i;
}
void expect_same(const std::vector<float>& got, const std::vector<float>& want, float tolerance = 0) {
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance * (1 + std::fabs(want[i]))) << i;
}

TEST_F(KernelsGpu, AddNorm) {
  for (const int64_t d : {48, 384, 1280}) {
    const int64_t rows = 37;
    Both<Half> y(random_half(rows * d)), out(std::vector<Half>(static_cast<size_t>(rows * d)));
    Both<float> x(random(rows * d)), gamma(random(d)), beta(random(d)), sum(random(rows * d)), mean(random(rows)), rstd(random(rows));
    launch(AddNorm<Half, Half>{y.on_device(), x.on_device(), gamma.on_device(), beta.on_device(), d, 1e-6f, sum.on_device(), out.on_device(), mean.on_device(), rstd.on_device()}, rows, nullptr);
    host::run(AddNorm<Half, Half>{y.host.data(), x.host.data(), gamma.host.data(), beta.host.data(), d, 1e-6f, sum.host.data(), out.host.data(), mean.host.data(), rstd.host.data()}, rows);
    expect_same(sum.back(), sum.host), expect_same(mean.back(), mean.host), expect_same(rstd.back(), rstd.host), expect_same(out.back(), out.host);
  }
}

TEST_F(KernelsGpu, NormBackward) {
  const int64_t rows = 131, d = 1280, chunks = up(rows, kRowsPerChunk);
  Both<Half> dy(random_half(rows * d)), half(std::vector<Half>(static_cast<size_t>(rows * d)));
  Both<float> x(random(rows * d)), gamma(random(d)), residual(random(rows * d)), dx(random(rows * d)), mean(random(rows)), rstd(random(rows)), partial(random(norm_backward_scratch(rows, d))), sums(random(3 * d));
  const NormBackward<Half> gpu{x.on_device(), dy.on_device(), mean.on_device(), rstd.on_device(), gamma.on_device(), residual.on_device(), rows, d, dx.on_device(), half.on_device(), partial.on_device()};
  const NormBackward<Half> cpu{x.host.data(), dy.host.data(), mean.host.data(), rstd.host.data(), gamma.host.data(), residual.host.data(), rows, d, dx.host.data(), half.host.data(), partial.host.data()};
  norm_backward(gpu, sums.on_device(), sums.on_device() + d, sums.on_device() + 2 * d, nullptr);
  host::run(cpu, chunks);
  for (int i = 0; i < 3; ++i) host::run(RowSums{partial.host.data() + i * d, chunks, 3 * d, d, sums.host.data() + i * d}, up(d, 32));
  expect_same(dx.back(), dx.host), expect_same(half.back(), half.host), expect_same(sums.back(), sums.host);
}

TEST_F(KernelsGpu, GeluAndItsBackward) {
  const int64_t rows = 130, d = 512;
  Both<Half> before(random_half(rows * d)), dafter(random_half(rows * d)), dbefore(random_half(rows * d)), after(random_half(rows * d));
  Both<float> scratch(random(column_scratch(rows, d))), sum(random(d));
  columns(GeluBackwardPair<Half>{dafter.on_device(), before.on_device(), dbefore.on_device(), after.on_device(), d}, rows, d, scratch.on_device(), sum.on_device(), nullptr);
  host::run(Columns<GeluBackwardPair<Half>>{{dafter.host.data(), before.host.data(), dbefore.host.data(), after.host.data(), d}, rows, d, scratch.host.data()}, up(rows, kRowsPerSum) * up(d, kColumnsPerBlock));
  host::run(RowSums{scratch.host.data(), up(rows, kRowsPerSum), d, d, sum.host.data()}, up(d, 32));
  expect_same(dbefore.back(), dbefore.host, 0.01f), expect_same(after.back(), after.host, 0.01f), expect_same(sum.back(), sum.host, 0.05f);
}

TEST_F(KernelsGpu, Loss) {
  const int64_t n = 100003;
  Both<float> a(random(n)), b(random(n)), gradient(random(n));
  Both<double> parts(std::vector<double>(static_cast<size_t>(loss_blocks(n)))), sum(std::vector<double>(1));
  loss({LossKind::kSmoothL1, a.on_device(), b.on_device(), n, gradient.on_device(), parts.on_device()}, sum.on_device(), nullptr);
  host::run(LossPart{LossKind::kSmoothL1, a.host.data(), b.host.data(), n, gradient.host.data(), parts.host.data()}, loss_blocks(n));
  host::run(SumOfParts<double>{parts.host.data(), loss_blocks(n), 1, sum.host.data()}, 1);
  expect_same(gradient.back(), gradient.host);
  EXPECT_EQ(sum.back()[0], sum.host[0]);
}

TEST_F(KernelsGpu, PatchesAndColumns) {
  const int64_t size = 28, patch = 7, count = 16, width = 147;
  std::vector<uint8_t> bytes(size * size * 3);
  for (auto& byte : bytes) byte = uint8_t(engine_());
  Both<uint8_t> pixels(bytes);
  Both<float> table(random(768));
  Both<Half> rows(std::vector<Half>(static_cast<size_t>(count * width)));
  launch(Patchify<Half>{pixels.on_device(), nullptr, table.on_device(), size, patch, rows.on_device()}, count, nullptr);
  host::run(Patchify<Half>{pixels.host.data(), nullptr, table.host.data(), size, patch, rows.host.data()}, count);
  expect_same(rows.back(), rows.host);
  const int64_t n = 300, d = 384;
  Both<Half> q(random_half(n * d)), k(random_half(n * d)), v(random_half(n * d)), packed(random_half(3 * n * d));
  Both<float> scratch(random(column_scratch(n, 3 * d))), sum(random(3 * d));
  columns(PackPair<Half>{{q.on_device(), k.on_device(), v.on_device()}, d, packed.on_device()}, n, 3 * d, scratch.on_device(), sum.on_device(), nullptr);
  host::run(Columns<PackPair<Half>>{{{q.host.data(), k.host.data(), v.host.data()}, d, packed.host.data()}, n, 3 * d, scratch.host.data()}, up(n, kRowsPerSum) * up(3 * d, kColumnsPerBlock));
  host::run(RowSums{scratch.host.data(), up(n, kRowsPerSum), 3 * d, 3 * d, sum.host.data()}, up(3 * d, 32));
  expect_same(packed.back(), packed.host), expect_same(sum.back(), sum.host);
}

TEST_F(KernelsGpu, EightBitFloatsWithOneScale) {
  for (const int64_t n : {16, 4112, 10'000'000}) {
    Both<Half> x(random_half(n));
    Both<uint32_t> scratch(std::vector<uint32_t>(static_cast<size_t>(kPartsOfLargest)));
    Both<float> scale(std::vector<float>(1));
    Both<uint8_t> out(std::vector<uint8_t>(static_cast<size_t>(n)));
    to_e4m3(x.on_device(), n, scratch.on_device(), scale.on_device(), out.on_device(), nullptr);
    uint32_t largest = 0;
    for (const Half v : x.host) largest = std::max(largest, model::e4m3::magnitude(to_float(v)));
    const float want = model::e4m3::scale_of(largest);
    ASSERT_EQ(scale.back()[0], want);
    const auto got = out.back();
    for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], model::e4m3::encoded(to_float(x.host[i]) / want)) << i;
  }
}

}  // namespace
}  // namespace tessera::cuda
