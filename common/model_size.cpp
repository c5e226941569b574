#include "common/model_size.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <functional>
#include <vector>

#include "common/block_size.h"
#include "common/philox.h"

namespace tessera {
namespace {

// LN1, qkv, proj, LN2, fc1, fc2, each with bias.
int64_t block_parameters(int64_t width, int64_t hidden) {
  return 4 * width + 3 * width * width + 3 * width + width * width + width + width * hidden + hidden + hidden * width + width;
}
constexpr int64_t kTensorsPerBlock = 12;

// Keys, values and queries of all tokens; attention and what follows of those that are read.
double block_flops(double tokens, double read, double width, double hidden) {
  return 2 * tokens * 3 * width * width + 2 * read * (width * width + 2 * width * hidden) + 4 * read * tokens * width;
}
double encoder_flops(const ModelConfig& m, double tokens) {
  return 2 * tokens * double(3 * m.patch_size * m.patch_size * m.embed_dim) + double(m.depth) * block_flops(tokens, tokens, double(m.embed_dim), double(m.hidden_dim()));
}

// What a block keeps of a sequence for its backward, of which `read` tokens are read by what follows.
using KeptOf = std::function<double(double tokens, double read, double width, double hidden)>;
// Of one image.
double encoder_kept(const FunctionConfig& f, const MaskLengths& lengths, const KeptOf& kept) {
  return double(f.model.depth * lengths.contexts) * kept(lengths.context, lengths.context, double(f.model.embed_dim), double(f.model.hidden_dim()));
}
double predictor_kept(const FunctionConfig& f, const MaskLengths& lengths, const KeptOf& kept) {
  const double length = lengths.context + lengths.target, width = double(f.predictor.embed_dim), hidden = width * f.predictor.mlp_ratio;
  return double(lengths.contexts * lengths.targets) * (double(f.predictor.depth - 1) * kept(length, length, width, hidden) + kept(length, lengths.target, width, hidden));
}

struct Block {
  int top, left;
  BlockSize size;
};
Block place(PhiloxStream& random, BlockSize size, int grid, bool reference) {
  const auto corner = [&](int side) { return int(random.next_below(uint32_t(std::max(1, grid - side + (reference ? 0 : 1))))); };
  const int top = corner(size.height);
  return {top, corner(size.width), size};
}

// Patches of a context that no target covers.
int context_left(PhiloxStream& random, const MaskConfig& masks, BlockSize target, BlockSize context, int grid) {
  const bool reference = masks.mode == "reference";
  std::vector<char> kept(size_t(grid * grid), 0);
  const auto fill = [&](const Block& block, char value) {
    for (int y = block.top; y < std::min(grid, block.top + block.size.height); ++y)
      for (int x = block.left; x < std::min(grid, block.left + block.size.width); ++x) kept[size_t(y * grid + x)] = value;
  };
  fill(place(random, context, grid, reference), 1);
  for (int64_t t = 0; t < masks.targets && !masks.allow_overlap; ++t) fill(place(random, target, grid, reference), 0);
  return int(std::count(kept.begin(), kept.end(), 1));
}

MaskLengths multiblock_lengths(const FunctionConfig& f) {
  const int grid = int(f.model.grid());
  const bool reference = f.masks.mode == "reference";
  const int64_t images = f.batch.tile_size * f.batch.tiles_per_mask_group;
  const int64_t groups = std::clamp<int64_t>(20000 / images, 40, 400);
  MaskLengths out{0, 0, f.masks.contexts, f.masks.targets};
  for (int64_t g = 0; g < groups; ++g) {
    PhiloxStream random(0, Purpose::kMaskSize, uint64_t(g), 0);
    const auto draw = [&](const Pair& scale, const Pair& aspect) {
      const double u = random.next_float(), v = random.next_float();
      return reference ? reference_block_size(u, grid, grid, scale, aspect) : uniform_block_size(u, v, grid, grid, scale, aspect);
    };
    const BlockSize target = draw(f.masks.target_scale, f.masks.target_aspect), context = draw(f.masks.context_scale, f.masks.context_aspect);
    int least = grid * grid;
    for (int64_t i = 0; i < images * f.masks.contexts; ++i) {
      const int left = context_left(random, f.masks, target, context, grid);
      if (left > f.masks.min_keep) least = std::min(least, left);  // smaller ones are drawn again
    }
    out.context += double(least / f.masks.context_multiple * f.masks.context_multiple) / double(groups);
    out.target += double(target.area()) / double(groups);
  }
  return out;
}

}  // namespace

ParameterCount encoder_parameters(const ModelConfig& m) {
  ParameterCount out;
  out.trainable = 3 * m.patch_size * m.patch_size * m.embed_dim + m.embed_dim + m.depth * block_parameters(m.embed_dim, m.hidden_dim()) + 2 * m.embed_dim;
  out.with_table = out.trainable + m.grid() * m.grid() * m.embed_dim;
  out.tensors = 1 + 2 + kTensorsPerBlock * m.depth + 2;
  return out;
}

ParameterCount predictor_parameters(const ModelConfig& m, const PredictorConfig& p) {
  const int64_t hidden = int64_t(double(p.embed_dim) * p.mlp_ratio + 1e-6);
  ParameterCount out;
  out.trainable = m.embed_dim * p.embed_dim + p.embed_dim + p.embed_dim + p.depth * block_parameters(p.embed_dim, hidden) + 2 * p.embed_dim +
                  p.embed_dim * m.embed_dim + m.embed_dim;
  out.with_table = out.trainable + m.grid() * m.grid() * p.embed_dim;
  out.tensors = 2 + 2 + kTensorsPerBlock * p.depth + 2 + 2;
  return out;
}

MaskLengths expected_mask_lengths(const FunctionConfig& f) {
  const double patches = double(f.model.grid() * f.model.grid());
  if (f.masks.kind == "random" || f.masks.kind == "block") return {0.4 * patches, 0.6 * patches, 1, 1};
  if (f.masks.kind == "rasterized") return {0.25 * patches, 0.25 * patches, 1, 3};
  return multiblock_lengths(f);
}

ImageFlops image_flops(const FunctionConfig& f, const MaskLengths& lengths) {
  const double width = double(f.predictor.embed_dim), dim = double(f.model.embed_dim);
  const double hidden = double(int64_t(width * f.predictor.mlp_ratio + 1e-6));
  const double length = lengths.context + lengths.target;  // of the last block's output the queries alone are read
  const double sequence = double(f.predictor.depth - 1) * block_flops(length, length, width, hidden) + block_flops(length, lengths.target, width, hidden) + 2 * lengths.target * width * dim;
  ImageFlops out;
  const bool whole = f.masks.target_masking == "output";
  out.target = whole ? encoder_flops(f.model, double(f.model.grid() * f.model.grid())) : double(lengths.targets) * encoder_flops(f.model, lengths.target);
  out.context = 3 * double(lengths.contexts) * encoder_flops(f.model, lengths.context);
  out.predictor = 3 * double(lengths.contexts) * (2 * lengths.context * dim * width + double(lengths.targets) * sequence);
  return out;
}

MemoryEstimate memory_estimate(const FunctionConfig& f, const MaskLengths& lengths) {
  const ParameterCount encoder = encoder_parameters(f.model), predictor = predictor_parameters(f.model, f.predictor);
  const int64_t trained = encoder.trainable + predictor.trainable;
  MemoryEstimate out;
  out.state = 4 * (3 * trained + encoder.trainable + (encoder.with_table - encoder.trainable) * 2 + predictor.with_table - predictor.trainable);
  // Of one rank alone: the tree's stack and the whole sum, or one tile and one sum (worker/trainer/reduction.h).
  out.gradients = 4 * trained * (f.reduction == "tree" ? int64_t(std::bit_width(uint64_t(f.batch.tiles))) + 1 : 2);
  // Kept per block: of every token its input, that one's norm, and q k v; of those that are read also attention's output, the
  // sum after it and its norm, both MLP activations, and the block's output.
  const KeptOf kept = [](double tokens, double read, double width, double hidden) { return tokens * 5 * width + read * (4 * width + 2 * hidden); };
  out.activations = int64_t(4.0 * double(f.batch.tile_size) * (encoder_kept(f, lengths, kept) + predictor_kept(f, lengths, kept)));
  out.checkpoint = out.state;
  return out;
}

GpuMemory gpu_memory(const FunctionConfig& f, const MaskLengths& lengths, int64_t tiles, int64_t world_size) {
  const bool halves = f.precision != "fp32";
  const double inner = halves ? 2 : 4, images = double(f.batch.tile_size), patches = double(f.model.grid() * f.model.grid());
  const ParameterCount encoder = encoder_parameters(f.model), predictor = predictor_parameters(f.model, f.predictor);
  const int64_t trained = encoder.trainable + predictor.trainable;
  GpuMemory out;
  out.state = memory_estimate(f, lengths).state + (halves ? 2 * (trained + encoder.trainable) : 0);
  const bool one_buffer = world_size == 1 && tiles == 1;
  out.gradients = 4 * trained * (one_buffer ? 1 : 1 + int64_t(std::bit_width(uint64_t(tiles))));
  // Kept per block. Of every token: the stream before attention in fp32; inner: its norm and q k v. Of those that are read
  // also the stream before the MLP in fp32; inner: its norm, attention's output, the hidden layer before GELU.
  const KeptOf kept = [&](double tokens, double read, double width, double hidden) { return tokens * (4 + 4 * inner) * width + read * (4 * width + inner * (2 * width + hidden)); };
  // A block's temporaries in its backward, and in a forward that keeps nothing.
  const auto passing = [&](double tokens, double width, double hidden) { return tokens * (12 * width + inner * (6 * width + 3 * hidden)); };
  const double dim = double(f.model.embed_dim), hidden = double(f.model.hidden_dim()), width = double(f.predictor.embed_dim), narrow = width * f.predictor.mlp_ratio;
  const double contexts = images * double(lengths.contexts), sequences = contexts * double(lengths.targets), length = lengths.context + lengths.target;
  const double predictor_tape = images * predictor_kept(f, lengths, kept);  // begins after the target's pass
  out.activations = int64_t(images * encoder_kept(f, lengths, kept) + predictor_tape);
  const double seen = f.masks.target_masking == "output" ? patches : double(lengths.targets) * lengths.target, query = 4 * dim * sequences * lengths.target;
  const double target_pass = images * passing(seen, dim, hidden) - predictor_tape;
  const double loss = 4 * dim * images * seen + 3 * query;  // targets, wanted, predicted and its gradient
  // Only the gradient is left of these; and a block's tape goes before the next block's backward comes.
  const double last_block = sequences * (passing(lengths.target, width, narrow) + (length - lengths.target) * (8 + 6 * inner) * width);
  const double block = sequences * (passing(length, width, narrow) - kept(length, lengths.target, width, narrow));
  const double encoder_block = contexts * passing(lengths.context, dim, hidden) - predictor_tape;
  out.working = int64_t(std::max({target_pass, loss, query + last_block, f.predictor.depth > 1 ? query + block : 0, encoder_block}));
  out.context = int64_t{700} << 20;
  return out;
}

std::string gpu_memory_refusal(const FunctionConfig& f, const GpuMemory& need, int64_t available, const std::string& device) {
  if (need.total() <= available) return "";
  const auto gigabytes = [](int64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f GB", double(bytes) / 1e9);
    return std::string(text);
  };
  const int64_t fixed = need.total() - need.activations - need.working, left = available - fixed;
  const int64_t fits = left > 0 ? f.batch.tile_size * left / (need.activations + need.working) : 0;
  std::string text = "[engine] " + device + " has " + gigabytes(available) + " of memory free; " + f.model.name + " with tiles of " + std::to_string(f.batch.tile_size) + " images needs about " +
                     gigabytes(need.total()) + ": " + gigabytes(need.state) + " state, " + gigabytes(need.gradients) + " gradients, " + gigabytes(need.activations + need.working) + " activations; ";
  if (fits >= 1) return text + "set function.batch.tile_size to " + std::to_string(fits) + " or less (and function.batch.tiles to more), or use a GPU with more memory";
  if (f.precision == "fp32") return text + "set function.precision: bf16, or use a GPU with more memory";
  return text + "even a tile of one image does not fit: use a GPU with more memory or a smaller function.model.name";
}

}  // namespace tessera
