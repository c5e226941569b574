#include "worker/collective/collective.h"

namespace tessera::collective {

Result<std::unique_ptr<Collective>> make_nccl(Mesh&, AbortSignal&, int, const std::string& device, Millis) {
  return fail(ErrorCode::kFixConfig, "[collective] device " + device + ": this build has no CUDA; configure with -DTESSERA_CUDA=on, or set operation.device: cpu");
}

}  // namespace tessera::collective
