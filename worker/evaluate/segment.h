// `tessera evaluate segment`: object or background, or which class of object, read off single patches by the linear probe. Masks are pictures: a
// second data set with the keys of the images, bright where an object is. Scenes have theirs from their generator.
#pragma once

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker/evaluate/labelled.h"

namespace tessera::evaluate {

// 1 where more than half of a patch's pixels are brighter than half, else 0. masks [n, S, S, 3] uint8; n * grid * grid labels, image by image. Pure.
std::vector<int64_t> patch_labels(const at::Tensor& masks, int64_t grid);

// Where the masks of `data` are when none are named: "scene-masks:..." of "scenes:...", else empty. Pure.
std::string masks_of(const std::string& data);

// The part of a class's patches that is right: of the patches predicted or truly of it, those that are both. Mean over the classes; a class
// that neither has counts 1. Pure. By image: with its standard error over `images` equal parts, by leaving out one after another (jackknife).
double mean_iou(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth, int64_t classes);
MeanError mean_iou_by_image(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth, int64_t classes, int64_t images);

// Two classes, ground and object; or, with options.labels = {NAME}, a label of the images in whole numbers, ground and one class for each value:
// an object's patch is of its image's class. value: with two classes the share of right patches, with more the mean IoU, in which the many
// patches of ground count no more than any class; `scores` has both, with standard errors over images (patches of one image go together), for
// the model and the baselines random_init, pixels, and majority (the most frequent class everywhere). At most 1,000 training and 500 test
// images. Errors: those of the loader; kUsage: no masks, or test data of its own; kFixData: the masks are not those of the images, fewer than 10
// images in a part, one class only, no such label.
Result<nlohmann::ordered_json> evaluate_segment(const LoadedModel& model, const EvaluationOptions& options, const std::string& masks);

}  // namespace tessera::evaluate
