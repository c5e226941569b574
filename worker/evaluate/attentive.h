// `tessera evaluate attentive`: a cross-attention block with one learned query reads the frozen patches, a linear layer the
// classes from what it read (the attentive probe of V-JEPA and CAE; for features that a mean over patches blurs).
//
//   read = query + W_o concat_h( softmax_k(q_h . K_h x_k / sqrt(d_h)) V_h x_k )      x: patches, standardised per channel
//   read = read + MLP(LN(read));   logits = W LN(read) + b
//
// As there is one query, q_h K_h is one vector per head and V_h is applied after the weighted mean: no product over all
// patches is larger than d x heads. Trained by AdamW (betas 0.9, 0.999, weight decay 0.05), cosine schedule; the learning
// rate comes from a grid, chosen on 20 % of the training part, then fitted on all of it.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "worker/evaluate/labelled.h"

namespace tessera::evaluate {

struct AttentiveOptions {
  int64_t epochs = 20, batch = 128;
};
// Class of each test image. train_nkd, test_nkd [n, k, d] fp32; heads divides d. Deterministic for one thread count.
std::vector<int64_t> attentive_probe(const at::Tensor& train_nkd, const std::vector<int64_t>& labels, int64_t classes, const at::Tensor& test_nkd, int64_t heads, double lr,
                                     const AttentiveOptions& options, int64_t seed);

// Errors: those of read_labelled; kUsage when the patches of all images need more than 6 GiB, with the number that fits.
Result<nlohmann::ordered_json> evaluate_attentive(const LoadedModel& model, const EvaluationOptions& options, const AttentiveOptions& attentive);

}  // namespace tessera::evaluate
