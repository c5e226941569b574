#include <algorithm>
#include <cmath>

#include "worker/optimizer/update.h"

namespace tessera::optimizer {

Schedule::Schedule(const FunctionConfig& function, const RunLength& length) : config_(function.optimizer) {
  // The published classes: T = int(ipe_scale * epochs * ipe), warm-up int(warmup * ipe); the EMA's length is not cut to a
  // whole number.
  total_ = function.steps > 0 ? std::floor(config_.ipe_scale * double(length.total_steps))
                              : std::floor(config_.ipe_scale * double(function.epochs) * double(length.steps_per_epoch));
  ema_total_ = double(length.total_steps) * config_.ipe_scale;
  warmup_ = double(length.warmup_steps);
}

StepRates Schedule::at(Step step) const {
  const auto& c = config_;
  const double k = double(step + 1);
  StepRates rates;
  if (k < warmup_) {
    rates.lr = c.start_lr + k / std::max(1.0, warmup_) * (c.lr - c.start_lr);
  } else {
    const double progress = (k - warmup_) / std::max(1.0, total_ - warmup_);
    rates.lr = std::max(c.final_lr, c.final_lr + (c.lr - c.final_lr) * 0.5 * (1.0 + std::cos(M_PI * progress)));
  }
  const double decay = c.final_weight_decay + (c.weight_decay - c.final_weight_decay) * 0.5 * (1.0 + std::cos(M_PI * k / total_));
  rates.weight_decay = c.final_weight_decay <= c.weight_decay ? std::max(c.final_weight_decay, decay) : std::min(c.final_weight_decay, decay);
  rates.ema = c.ema[0] + double(step) * (c.ema[1] - c.ema[0]) / ema_total_;
  return rates;
}

}  // namespace tessera::optimizer
