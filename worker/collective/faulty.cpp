#include <cstring>
#include <limits>

#include "worker/collective/collective.h"

namespace tessera::collective {
namespace {

class Faulty : public Collective {
 public:
  Faulty(std::unique_ptr<Collective> inner, Misbehaviour kind, int64_t at) : inner_(std::move(inner)), kind_(kind), at_(at) {}
  Status exchange(const std::vector<NodeBuffer>& nodes, int64_t n, float* result) override {
    return misbehave(result, [&] { return inner_->exchange(nodes, n, result); });
  }
  Status sum_floats(float* data, int64_t n) override {
    return misbehave(data, [&] { return inner_->sum_floats(data, n); });
  }
  Status sum_integers(int32_t* data, int64_t n) override {
    return misbehave(data, [&] { return inner_->sum_integers(data, n); });
  }
  Status all_gather(float* data, int64_t n) override { return failed_ ? broken() : inner_->all_gather(data, n); }
  Status broadcast(void* data, int64_t size_bytes, Rank root) override { return failed_ ? broken() : inner_->broadcast(data, size_bytes, root); }
  void cancel() override { inner_->cancel(); }
  void quiesce() override { inner_->quiesce(); }
  std::shared_ptr<void> mark() override { return inner_->mark(); }
  Status begin_after(const std::shared_ptr<void>& mark) override { return inner_->begin_after(mark); }
  Rank suspect() const override { return inner_->suspect(); }

 private:
  Status broken() const { return fail(ErrorCode::kRebuildWorld, "[collective] exchange " + std::to_string(at_) + " was told to fail"); }
  template <typename Word, typename Call>
  Status misbehave(Word* result, const Call& call) {
    const bool now = count_++ == at_;
    if (failed_ || (now && kind_ == Misbehaviour::kFail)) {
      failed_ = true;
      return broken();
    }
    TESSERA_TRY(call());
    if (now && kind_ == Misbehaviour::kInfinite) result[0] = std::numeric_limits<Word>::has_infinity ? std::numeric_limits<Word>::infinity() : std::numeric_limits<Word>::max();
    if (now && kind_ == Misbehaviour::kFlipBit) {
      uint32_t bits;
      std::memcpy(&bits, result, sizeof bits);
      bits ^= 1;
      std::memcpy(result, &bits, sizeof bits);
    }
    return {};
  }

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
