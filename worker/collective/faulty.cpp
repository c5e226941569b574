#include <cstring>
#include <limits>

#include "worker/collective/collective.h"

namespace tessera::collective {
namespace {

class Faulty : public Collective {
 public:
  Faulty(std::unique_ptr<Collective> inner, Misbehaviour kind, int64_t at) : inner_(std::move(inner)), kind_(kind), at_(at) {}
  Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) override {
    const bool now = count_++ == at_;
    if (failed_ || (now && kind_ == Misbehaviour::kFail)) {
      failed_ = true;
      return fail(ErrorCode::kRebuildWorld, "[collective] exchange " + std::to_string(at_) + " was told to fail");
    }
    TESSERA_TRY(inner_->exchange(nodes, n, result));
    if (now && kind_ == Misbehaviour::kInfinite) result[0] = std::numeric_limits<float>::infinity();
    if (now && kind_ == Misbehaviour::kFlipBit) {
      uint32_t bits;
      std::memcpy(&bits, result, sizeof bits);
      bits ^= 1;
      std::memcpy(result, &bits, sizeof bits);
    }
    return {};
  }
  Status all_gather(float* data, int64_t n) override { return failed_ ? exchange({}, 0, nullptr) : inner_->all_gather(data, n); }
  Status broadcast(void* data, int64_t size_bytes, Rank root) override { return failed_ ? exchange({}, 0, nullptr) : inner_->broadcast(data, size_bytes, root); }
  void quiesce() override { inner_->quiesce(); }
  Rank suspect() const override { return inner_->suspect(); }

 private:
  std::unique_ptr<Collective> inner_;
  Misbehaviour kind_;
  int64_t at_, count_ = 0;
  bool failed_ = false;
};

}  // namespace

std::unique_ptr<Collective> make_faulty(std::unique_ptr<Collective> inner, Misbehaviour kind, int64_t at_exchange) {
  return std::make_unique<Faulty>(std::move(inner), kind, at_exchange);
}

}  // namespace tessera::collective
