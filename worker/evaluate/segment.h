// `tessera evaluate segment`: object or background, read off single patches by the linear probe. Masks are pictures: a second data set,
// --masks, with the keys of the images, bright where the object is. (The loader serves no masks of scenes.)
#pragma once

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker/evaluate/labelled.h"

namespace tessera::evaluate {

// 1 where more than half of a patch's brightness is there, else 0. masks [n, S, S, 3] uint8; n * grid * grid labels, image by image. Pure.
std::vector<int64_t> patch_labels(const at::Tensor& masks, int64_t grid);

// Mean over the two classes of intersection over union; a class that neither has counts 1. Pure.
double mean_iou(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth);

// value: share of right patches of the test images (all patches), standard_error over images, since patches of one image go together;
// mean_iou; baselines random_init, pixels, and majority (the more frequent class everywhere). At most 1,000 training and 500 test
// images. Errors: those of the loader; kFixData: the masks are not those of the images, fewer than 10 images in a part, one class only.
Result<nlohmann::ordered_json> evaluate_segment(const LoadedModel& model, const EvaluationOptions& options, const std::string& masks);

}  // namespace tessera::evaluate
