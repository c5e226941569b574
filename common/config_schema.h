// The schema: every configuration key once, with its C++ home, allowed values and meaning. Internal to config*.cpp.
#pragma once

#include "common/config.h"

namespace tessera {

struct FieldInfo {
  const char* key;      // dotted, "function.model.name"
  const char* meaning;  // one sentence for docs/configuration.md
  const char* allowed;  // "a | b | c" for words, "[lo, hi]" for numbers, "" for free
  bool late = false;    // of function: runs were begun before there was this key, and its default is what they did
};

// Calls visitor(FieldInfo, value&) for every key; value is int64_t, double, bool, std::string, Pair or Triple.
template <typename F, typename Visitor>
void visit_function(F& f, Visitor&& v) {
  v(FieldInfo{"function.version", "Raised when a rule that decides bits changes.", "[1, 1]"}, f.version);
  v(FieldInfo{"function.seed", "Seed of every random number of the run.", "[0, 9223372036854775807]"}, f.seed);
  v(FieldInfo{"function.model.name", "Encoder by name; `custom` takes the four sizes below.", "vit_tiny | vit_small | vit_base | vit_large | vit_huge | vit_giant | custom"}, f.model.name);
  v(FieldInfo{"function.model.patch_size", "Side of a patch in pixels.", "[1, 256]"}, f.model.patch_size);
  v(FieldInfo{"function.model.image_size", "Side of the square input in pixels; a multiple of patch_size.", "[1, 4096]"}, f.model.image_size);
  v(FieldInfo{"function.model.embed_dim", "Width of the encoder; 0 takes the name's. A multiple of 4 and of num_heads.", "[0, 16384]"}, f.model.embed_dim);
  v(FieldInfo{"function.model.depth", "Transformer blocks of the encoder; 0 takes the name's.", "[0, 256]"}, f.model.depth);
  v(FieldInfo{"function.model.num_heads", "Attention heads of the encoder; 0 takes the name's.", "[0, 256]"}, f.model.num_heads);
  v(FieldInfo{"function.model.mlp_ratio", "Hidden width of the MLP over embed_dim; 0 takes the name's.", "[0, 16]"}, f.model.mlp_ratio);
  v(FieldInfo{"function.model.depth_rescale", "Divide attn.proj and mlp.fc2 of block l by sqrt(2 l) at initialisation. The published code does this and then overwrites it, so off is what was published.", ""}, f.model.depth_rescale);
  v(FieldInfo{"function.predictor.embed_dim", "Width of the predictor; a multiple of 4 and of its num_heads.", "[4, 16384]"}, f.predictor.embed_dim);
  v(FieldInfo{"function.predictor.depth", "Transformer blocks of the predictor.", "[1, 256]"}, f.predictor.depth);
  v(FieldInfo{"function.predictor.num_heads", "Attention heads of the predictor; 0 takes the encoder's.", "[0, 256]"}, f.predictor.num_heads);
  v(FieldInfo{"function.predictor.mlp_ratio", "Hidden width of the predictor's MLP over its embed_dim.", "[0.25, 16]"}, f.predictor.mlp_ratio);
  v(FieldInfo{"function.data.manifest_digest", "Identity of the dataset; `auto` takes that of operation.data_path at the first start.", ""}, f.data.manifest_digest);
  v(FieldInfo{"function.data.shuffle", "One permutation of all samples, or of blocks and of samples in windows of blocks.", "global | block"}, f.data.shuffle);
  v(FieldInfo{"function.data.crop_scale", "Share of the image's area that a random crop covers.", "[0.001, 1]"}, f.data.crop_scale);
  v(FieldInfo{"function.data.crop_ratio", "Aspect ratio of a random crop, drawn log-uniformly.", "[0.01, 100]"}, f.data.crop_ratio);
  v(FieldInfo{"function.data.interpolation", "Filter of the antialiased resize (Pillow's arithmetic, byte for byte).", "bilinear | bicubic"}, f.data.interpolation);
  v(FieldInfo{"function.data.horizontal_flip", "Mirror each crop with probability 1/2.", ""}, f.data.horizontal_flip);
  v(FieldInfo{"function.data.mean", "Mean per channel that is subtracted after scaling to [0, 1].", "[0, 1]"}, f.data.mean);
  v(FieldInfo{"function.data.std", "Standard deviation per channel that is divided by.", "[0.0001, 10]"}, f.data.std);
  v(FieldInfo{"function.data.undecodable", "What becomes of an image whose bytes match the manifest but do not decode: stop, or a grey image that is listed.", "fail | grey"}, f.data.undecodable);
  v(FieldInfo{"function.masks.kind", "Masking: the paper's multi-block, or one of its ablations.", "multiblock | random | block | rasterized"}, f.masks.kind);
  v(FieldInfo{"function.masks.mode", "`reference` is the published sampler exactly; `uniform` reaches every patch and truncates without bias.", "uniform | reference"}, f.masks.mode);
  v(FieldInfo{"function.masks.targets", "Target blocks per image.", "[1, 16]"}, f.masks.targets);
  v(FieldInfo{"function.masks.target_scale", "Area of a target block over the grid's.", "[0.001, 1]"}, f.masks.target_scale);
  v(FieldInfo{"function.masks.target_aspect", "Height over width of a target block.", "[0.05, 20]"}, f.masks.target_aspect);
  v(FieldInfo{"function.masks.contexts", "Context blocks per image.", "[1, 8]"}, f.masks.contexts);
  v(FieldInfo{"function.masks.context_scale", "Area of the context block over the grid's, before the targets are removed.", "[0.001, 1]"}, f.masks.context_scale);
  v(FieldInfo{"function.masks.context_aspect", "Height over width of the context block.", "[0.05, 20]"}, f.masks.context_aspect);
  v(FieldInfo{"function.masks.allow_overlap", "Leave the targets in the context.", ""}, f.masks.allow_overlap);
  v(FieldInfo{"function.masks.target_masking", "Whether the target encoder sees the whole image and its output is masked (what was published), or only the patches of each target block (the paper's ablation).", "output | input"}, f.masks.target_masking);
  v(FieldInfo{"function.masks.min_keep", "A mask must hold more patches than this.", "[0, 65536]"}, f.masks.min_keep);
  v(FieldInfo{"function.masks.context_multiple", "The kept context length is cut down to a multiple of this; 1 is what was published.", "[1, 1024]"}, f.masks.context_multiple);
  v(FieldInfo{"function.batch.tile_size", "Images per tile, the atom of a step.", "[1, 65536]"}, f.batch.tile_size);
  v(FieldInfo{"function.batch.tiles", "Tiles per step; global batch = tile_size x tiles.", "[1, 65536]"}, f.batch.tiles);
  v(FieldInfo{"function.batch.tiles_per_mask_group", "Tiles that share mask sizes and truncation length.", "[1, 65536]"}, f.batch.tiles_per_mask_group);
  v(FieldInfo{"function.optimizer.lr", "Peak learning rate.", "[0, 100]"}, f.optimizer.lr);
  v(FieldInfo{"function.optimizer.start_lr", "Learning rate at the start of the warm-up.", "[0, 100]"}, f.optimizer.start_lr);
  v(FieldInfo{"function.optimizer.final_lr", "Learning rate at the end of the cosine.", "[0, 100]"}, f.optimizer.final_lr);
  v(FieldInfo{"function.optimizer.warmup_epochs", "Epochs of linear warm-up.", "[0, 100000]"}, f.optimizer.warmup_epochs);
  v(FieldInfo{"function.optimizer.weight_decay", "Weight decay at the start of its cosine.", "[0, 100]"}, f.optimizer.weight_decay);
  v(FieldInfo{"function.optimizer.final_weight_decay", "Weight decay at its end.", "[0, 100]"}, f.optimizer.final_weight_decay);
  v(FieldInfo{"function.optimizer.betas", "AdamW's betas.", "[0, 0.9999999]"}, f.optimizer.betas);
  v(FieldInfo{"function.optimizer.eps", "AdamW's epsilon.", "[1e-20, 1]"}, f.optimizer.eps);
  v(FieldInfo{"function.optimizer.ema", "Momentum of the target encoder, linear from first to second.", "[0, 1]"}, f.optimizer.ema);
  v(FieldInfo{"function.optimizer.ipe_scale", "Stretches all schedules beyond the end of the run.", "[0.01, 100]"}, f.optimizer.ipe_scale);
  v(FieldInfo{"function.optimizer.loss", "Loss between prediction and target; smooth_l1 is what was published.", "smooth_l1 | l1 | l2"}, f.optimizer.loss);
  v(FieldInfo{"function.epochs", "Length of the run in passes over the data; unused when steps is set.", "[1, 1000000]"}, f.epochs);
  v(FieldInfo{"function.steps", "Length of the run in steps; 0 takes epochs.", "[0, 1000000000000]"}, f.steps);
  v(FieldInfo{"function.warmup_steps", "Warm-up in steps, used with steps.", "[0, 1000000000000]"}, f.warmup_steps);
  v(FieldInfo{"function.precision", "Arithmetic of the forward and backward passes.", "fp32 | bf16 | published"}, f.precision);
  v(FieldInfo{"function.target_precision", "Arithmetic of the target encoder's pass, which has no gradient: that of precision, or, as an experiment, 8-bit floats (E4M3, one power of two per tensor) as operands of its blocks' products (docs/decisions/0011-fp8-for-the-target-pass.md).", "same | fp8", true}, f.target_precision);
  v(FieldInfo{"function.reduction", "How tile gradients are summed: the fixed tree; integers, rounded by an exponent per tensor; a plain float all-reduce, which gives placement independence up (docs/decisions/0008-which-reduction.md).", "tree | fixed32 | fast"}, f.reduction);
}

template <typename O, typename Visitor>
void visit_operation(O& o, Visitor&& v) {
  v(FieldInfo{"operation.run_id", "Name of the run; `auto` takes the config's name.", ""}, o.run_id);
  v(FieldInfo{"operation.run_dir", "Folder of the run; `auto` is runs/<run_id>.", ""}, o.run_dir);
  v(FieldInfo{"operation.data_path", "Folder of images, or folder or glob of tar shards; `http(s)://HOST/train-{000..099}.tar` or a listing; `s3://BUCKET/PREFIX/`; `scenes:N` makes N procedural images.", ""}, o.data_path);
  v(FieldInfo{"operation.remote.cache_dir", "Folder where loaders keep what they read of http and s3 data; `auto` is $TESSERA_CACHE/objects, else ~/.cache/tessera/objects.", ""}, o.remote.cache_dir);
  v(FieldInfo{"operation.remote.cache_bytes", "Bytes of that folder at most; the least recently used go first.", "[67108864, 1125899906842624]"}, o.remote.cache_bytes);
  v(FieldInfo{"operation.remote.retries", "A request that fails for a reason that may pass (503, a broken connection, half a body) is repeated so often, after growing pauses.", "[0, 100]"}, o.remote.retries);
  v(FieldInfo{"operation.remote.stall_seconds", "A download that brings less than 1 kB/s for so long has failed.", "[1, 3600]"}, o.remote.stall_seconds);
  v(FieldInfo{"operation.transport", "How tiles reach a trainer, and ranks each other's gradients: by shared memory on one host where that is possible, else TCP; always TCP; `shm` as auto, with a warning where a tile cannot go that way.", "auto | tcp | shm"}, o.transport);
  v(FieldInfo{"operation.device", "Device of the workers.", "auto | cpu | cuda"}, o.device);
  v(FieldInfo{"operation.compute_threads", "Threads per CPU trainer; part of the numerics class.", "[1, 1024]"}, o.compute_threads);
  v(FieldInfo{"operation.workers", "Workers that `tessera up` starts on this machine.", "[1, 1024]"}, o.workers);
  v(FieldInfo{"operation.loaders", "Loaders that `tessera up` starts on this machine.", "[1, 1024]"}, o.loaders);
  v(FieldInfo{"operation.loader_threads", "Threads per loader; never changes bits.", "[1, 1024]"}, o.loader_threads);
  v(FieldInfo{"operation.min_workers", "Fewer ready workers than this: the run waits.", "[1, 65536]"}, o.min_workers);
  v(FieldInfo{"operation.spares", "Warm standby trainers that every node daemon keeps: one takes the place of a trainer that dies, without the time that a start takes.", "[0, 64]"}, o.spares);
  v(FieldInfo{"operation.control.bind", "Address the coordinator's control socket binds to.", ""}, o.control.bind);
  v(FieldInfo{"operation.control.port", "Its port; 0 takes a free one.", "[0, 65535]"}, o.control.port);
  v(FieldInfo{"operation.advertise", "Address that others reach this host by; `auto` takes the bind address or the host's first.", ""}, o.advertise);
  v(FieldInfo{"operation.http.bind", "Address of the status endpoint.", ""}, o.http.bind);
  v(FieldInfo{"operation.http.port", "Its port; 0 takes a free one.", "[0, 65535]"}, o.http.port);
  v(FieldInfo{"operation.ema_distribution", "Who computes the EMA target: each rank a slice and broadcasts it, or each rank all.", "broadcast | local"}, o.ema_distribution);
  v(FieldInfo{"operation.checkpoint.every_steps", "Steps between checkpoints; 0 writes one at the end only.", "[0, 1000000000]"}, o.checkpoint.every_steps);
  v(FieldInfo{"operation.checkpoint.keep_last", "Newest checkpoints that are kept.", "[1, 1000000]"}, o.checkpoint.keep_last);
  v(FieldInfo{"operation.checkpoint.keep_every", "Checkpoints at multiples of this are kept for ever; 0: none.", "[0, 1000000000]"}, o.checkpoint.keep_every);
  v(FieldInfo{"operation.max_skipped_steps", "Non-finite steps in a row before the run stops.", "[1, 1000000]"}, o.max_skipped_steps);
  v(FieldInfo{"operation.audit_every_steps", "Every so many steps one tile is evaluated by a second rank too, and the gradients are compared: finds a device that computes wrong; 0: never.", "[0, 1000000000]"}, o.audit_every_steps);
  v(FieldInfo{"operation.data_bad_budget", "Undecodable samples before the run stops.", "[0, 1000000000]"}, o.data_bad_budget);
  v(FieldInfo{"operation.host_prefetch_bytes", "Pixels that a trainer may have asked for ahead.", "[1048576, 1099511627776]"}, o.host_prefetch_bytes);
  v(FieldInfo{"operation.stop_at_step", "Stop after this many committed steps; `none` or 0: at the end.", "[0, 1000000000000]"}, o.stop_at_step);
  v(FieldInfo{"operation.evaluate.every_steps", "Steps between linear probes of the newest checkpoint while `tessera up` trains (a multiple of checkpoint.every_steps is evaluated when it is published); 0: none.", "[0, 1000000000]"}, o.evaluate.every_steps);
  v(FieldInfo{"operation.evaluate.at_end", "What `tessera up` evaluates when the run is done.", "none | linear"}, o.evaluate.at_end);
  v(FieldInfo{"operation.evaluate.train_data", "Labelled data for the probe's training part; empty: the run's own data.", ""}, o.evaluate.train_data);
  v(FieldInfo{"operation.evaluate.test_data", "Labelled data for its test part; empty: held out from the training data.", ""}, o.evaluate.test_data);
  v(FieldInfo{"operation.evaluate.train_images", "Images of the probe's training part at most.", "[10, 100000000]"}, o.evaluate.train_images);
  v(FieldInfo{"operation.evaluate.test_images", "Images of its test part at most.", "[10, 100000000]"}, o.evaluate.test_images);
  v(FieldInfo{"operation.log.format", "Log lines on the terminal; files are always JSON.", "text | json"}, o.log.format);
  v(FieldInfo{"operation.log.level", "Least severity that is logged.", "trace | debug | info | warning | error"}, o.log.level);
}

}  // namespace tessera
