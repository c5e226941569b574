#include "ops/cli/explain.h"

#include "common/file.h"
#include "common/model_size.h"
#include "ops/cli/progress.h"

namespace tessera::cli {
namespace {

Json count_json(const ParameterCount& count) { return {{"trainable", count.trainable}, {"with_position_table", count.with_table}, {"tensors", count.tensors}}; }

std::string decimal(double value, const char* form) {
  char text[48];
  std::snprintf(text, sizeof text, form, value);
  return text;
}
std::string flops_text(double flops) {
  const char* units[] = {"GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"};
  double value = flops / 1e9;
  int unit = 0;
  while (value >= 1000 && unit < 4) value /= 1000, ++unit;
  return decimal(value, "%.3g ") + units[unit];
}

}  // namespace

Result<Json> explain(const Config& config, int64_t samples, double images_per_second) {
  const FunctionConfig& f = config.function;
  const MaskLengths lengths = expected_mask_lengths(f);
  const ImageFlops flops = image_flops(f, lengths);
  const MemoryEstimate memory = memory_estimate(f, lengths);
  Json out;
  out["precision"] = f.precision;
  out["function_id"] = to_hex(function_id(f));
  out["parameters"] = {{"encoder", count_json(encoder_parameters(f.model))}, {"predictor", count_json(predictor_parameters(f.model, f.predictor))}};
  out["masks"] = {{"patches", f.model.grid() * f.model.grid()}, {"context", lengths.context}, {"target", lengths.target}, {"targets", lengths.targets}, {"contexts", lengths.contexts}};
  out["flops_per_image"] = {{"target_encoder", flops.target}, {"context_encoder", flops.context}, {"predictor", flops.predictor}, {"total", flops.total()}};
  out["memory_bytes"] = {{"state", memory.state}, {"gradients", memory.gradients}, {"activations", memory.activations}, {"checkpoint", memory.checkpoint}};
  const GpuMemory gpu = gpu_memory(f, lengths, std::max<int64_t>(1, f.batch.tiles / std::max<int64_t>(1, config.operation.workers)), config.operation.workers);
  out["gpu_memory_bytes"] = {{"state", gpu.state}, {"gradients", gpu.gradients}, {"activations", gpu.activations}, {"working", gpu.working}, {"context", gpu.context}, {"total", gpu.total()}};
  out["batch"] = {{"global", f.batch.global()}, {"tiles", f.batch.tiles}, {"tile_size", f.batch.tile_size}, {"tile_pixel_bytes", tile_pixel_bytes(f)}};
  int64_t steps = f.steps;
  if (samples > 0) {
    TESSERA_ASSIGN(const RunLength length, run_length(f, samples));
    steps = length.total_steps;
    out["samples"] = samples;
    out["steps_per_epoch"] = length.steps_per_epoch;
    out["warmup_steps"] = length.warmup_steps;
  }
  if (steps > 0) {
    const double images = double(steps) * double(f.batch.global());
    out["steps"] = steps;
    out["images"] = int64_t(images);
    out["flops"] = images * flops.total();
    if (images_per_second > 0) out["seconds"] = images / images_per_second;
  }
  return out;
}

std::string explain_text(const Json& facts) {
  const auto count = [&](const char* pointer) { return human_count(int64_t(number_at(facts, pointer))); };
  const auto flops = [&](const char* pointer) { return flops_text(number_at(facts, pointer)); };
  const auto bytes = [&](const char* pointer) { return human_bytes(int64_t(number_at(facts, pointer))); };
  std::string out;
  out += "encoder       " + count("/parameters/encoder/trainable") + " trainable parameters (" + count("/parameters/encoder/with_position_table") + " with the position table)\n";
  out += "predictor     " + count("/parameters/predictor/trainable") + " trainable parameters (" + count("/parameters/predictor/with_position_table") + " with the position table)\n";
  out += "masks         " + count("/masks/patches") + " patches; context keeps " + decimal(number_at(facts, "/masks/context"), "%.1f") + ", " + count("/masks/targets") + " targets of " +
         decimal(number_at(facts, "/masks/target"), "%.1f") + " (means, estimated)\n";
  out += "FLOPs         " + flops("/flops_per_image/total") + " an image: target encoder " + flops("/flops_per_image/target_encoder") + ", context encoder " +
         flops("/flops_per_image/context_encoder") + ", predictor " + flops("/flops_per_image/predictor") + "\n";
  out += "memory        " + bytes("/memory_bytes/state") + " state, up to " + bytes("/memory_bytes/gradients") + " gradients, about " + bytes("/memory_bytes/activations") +
         " activations a tile, per worker in fp32\n";
  out += "on a GPU      about " + bytes("/gpu_memory_bytes/total") + " in " + std::string(text_at(facts, "/precision")) + ": " + bytes("/gpu_memory_bytes/state") + " state, " + bytes("/gpu_memory_bytes/gradients") + " gradients, " +
         human_bytes(int64_t(number_at(facts, "/gpu_memory_bytes/activations") + number_at(facts, "/gpu_memory_bytes/working"))) + " activations\n";
  out += "checkpoint    " + bytes("/memory_bytes/checkpoint") + "\n";
  out += "step          " + count("/batch/global") + " images in " + count("/batch/tiles") + " tiles of " + count("/batch/tile_size") + ", " + bytes("/batch/tile_pixel_bytes") + " of pixels a tile\n";
  if (facts.contains("steps")) {
    out += "run           " + count("/steps") + " steps, " + count("/images") + " images, " + flops("/flops");
    if (facts.contains("seconds")) out += ", " + human_seconds(number_at(facts, "/seconds"));
    out += "\n";
  } else {
    out += "run           its length in steps depends on the data: --samples N says it\n";
  }
  return out;
}

}  // namespace tessera::cli
