// Wire form of what loaders say: datasets, assignments, tiles.
#include "proto/codec_masks.h"
#include "proto/codec_payloads.h"

namespace tessera::proto {

void put(const LoaderHello& s, wire::LoaderHello* w) {
  w->set_name(s.name);
  w->set_host(s.host);
  put(s.build, w->mutable_build());
  w->set_pid(s.pid);
  w->set_data_address(s.data_address);
}
void get(const wire::LoaderHello& w, LoaderHello* s) {
  s->name = w.name();
  s->host = w.host();
  get(w.build(), &s->build);
  s->pid = w.pid();
  s->data_address = w.data_address();
}

void put(const LoaderWelcome& s, wire::LoaderWelcome* w) {
  w->set_run_id(s.run_id);
  w->set_run_dir(s.run_dir);
  w->set_function_yaml(s.function_yaml);
  w->set_data_path(s.data_path);
  w->set_manifest_folder(s.manifest_folder);
  w->set_loader_threads(s.loader_threads);
  w->set_operation_yaml(utf8(s.operation_yaml));
}
void get(const wire::LoaderWelcome& w, LoaderWelcome* s) {
  s->run_id = w.run_id();
  s->run_dir = w.run_dir();
  s->function_yaml = w.function_yaml();
  s->data_path = w.data_path();
  s->manifest_folder = w.manifest_folder();
  s->loader_threads = w.loader_threads();
  s->operation_yaml = w.operation_yaml();
}

void put(const LoaderDataset& s, wire::LoaderDataset* w) {
  put(s.manifest_digest, w->mutable_manifest_digest());
  w->set_sample_count(s.sample_count);
  w->set_shard_count(s.shard_count);
  w->set_decoder_fingerprint(s.decoder_fingerprint);
  w->set_error(utf8(s.error));
  w->set_exit_code(s.exit_code);
}
void get(const wire::LoaderDataset& w, LoaderDataset* s) {
  get(w.manifest_digest(), &s->manifest_digest);
  s->sample_count = w.sample_count();
  s->shard_count = w.shard_count();
  s->decoder_fingerprint = w.decoder_fingerprint();
  s->error = w.error();
  s->exit_code = w.exit_code();
}

void put(const LoaderStatus& s, wire::LoaderStatus* w) {
  w->set_images_per_second(s.images_per_second);
  w->set_images_total(s.images_total);
  w->set_queue(s.queue);
  w->set_read_seconds(s.read_seconds);
  w->set_decode_seconds(s.decode_seconds);
  w->set_resize_seconds(s.resize_seconds);
  w->set_mask_seconds(s.mask_seconds);
  w->set_send_seconds(s.send_seconds);
  w->set_idle_seconds(s.idle_seconds);
  w->set_blocked_seconds(s.blocked_seconds);
  w->set_unsent_bytes(s.unsent_bytes);
  w->set_shared_tiles(s.shared_tiles);
  w->set_bad_samples(s.bad_samples);
  w->set_last_bad(utf8(s.last_bad));
}
void get(const wire::LoaderStatus& w, LoaderStatus* s) {
  s->images_per_second = w.images_per_second();
  s->images_total = w.images_total();
  s->queue = w.queue();
  s->read_seconds = w.read_seconds();
  s->decode_seconds = w.decode_seconds();
  s->resize_seconds = w.resize_seconds();
  s->mask_seconds = w.mask_seconds();
  s->send_seconds = w.send_seconds();
  s->idle_seconds = w.idle_seconds();
  s->blocked_seconds = w.blocked_seconds();
  s->unsent_bytes = w.unsent_bytes();
  s->shared_tiles = w.shared_tiles();
  s->bad_samples = w.bad_samples();
  s->last_bad = w.last_bad();
}

static void put(const LoaderShare& s, wire::LoaderShare* w) {
  w->set_name(s.name);
  w->set_data_address(s.data_address);
  w->set_first_shard(s.first_shard);
  w->set_last_shard(s.last_shard);
}
static void get(const wire::LoaderShare& w, LoaderShare* s) {
  s->name = w.name();
  s->data_address = w.data_address();
  s->first_shard = w.first_shard();
  s->last_shard = w.last_shard();
}

void put(const ShardAssignment& s, wire::ShardAssignment* w) {
  w->set_version(s.version);
  for (const auto& item : s.loaders) put(item, w->add_loaders());
}
void get(const wire::ShardAssignment& w, ShardAssignment* s) {
  s->version = w.version();
  for (const auto& item : w.loaders()) get(item, &s->loaders.emplace_back());
}

static void put(const CropBox& s, wire::CropBox* w) {
  w->set_top(s.top);
  w->set_left(s.left);
  w->set_height(s.height);
  w->set_width(s.width);
  w->set_flip(s.flip);
}
static void get(const wire::CropBox& w, CropBox* s) {
  s->top = w.top();
  s->left = w.left();
  s->height = w.height();
  s->width = w.width();
  s->flip = w.flip();
}

void put(const TileRequest& s, wire::TileRequest* w) {
  w->set_request_id(s.request_id);
  w->set_step(s.step);
  w->set_tile(s.tile);
  w->set_credit_bytes(s.credit_bytes);
  w->set_shared_host(utf8(s.shared_host));
}
void get(const wire::TileRequest& w, TileRequest* s) {
  s->request_id = w.request_id();
  s->step = w.step();
  s->tile = w.tile();
  s->credit_bytes = w.credit_bytes();
  s->shared_host = w.shared_host();
}

void put(const TileCancel& s, wire::TileCancel* w) {
  w->set_request_id(s.request_id);
}
void get(const wire::TileCancel& w, TileCancel* s) {
  s->request_id = w.request_id();
}

void put(const TileHeader& s, wire::TileHeader* w) {
  w->set_request_id(s.request_id);
  w->set_step(s.step);
  w->set_tile(s.tile);
  w->set_epoch(s.epoch);
  w->set_image_size(s.image_size);
  w->set_grid(s.grid);
  w->set_context_length(s.context_length);
  w->set_target_length(s.target_length);
  for (const auto& item : s.sample_ids) w->add_sample_ids(item);
  for (const auto& item : s.crops) put(item, w->add_crops());
  const MaskShape contexts{int64_t(s.sample_ids.size()), s.context_length, s.grid}, targets{contexts.images, s.target_length, s.grid};
  for (const auto& list : s.contexts) pack_mask(list, contexts, w->add_contexts());
  for (const auto& list : s.targets) pack_mask(list, targets, w->add_targets());
  for (const auto& item : s.grey_samples) w->add_grey_samples(item);
  w->set_pixel_bytes(s.pixel_bytes);
  w->set_frame_count(s.frame_count);
  put(s.pixel_hash, w->mutable_pixel_hash());
  put(s.digest, w->mutable_digest());
  if (s.shared.pid == 0 && s.shared.fd == 0 && s.shared.nonce == 0) return;
  w->mutable_shared()->set_pid(s.shared.pid);
  w->mutable_shared()->set_fd(s.shared.fd);
  w->mutable_shared()->set_nonce(s.shared.nonce);
}
void get(const wire::TileHeader& w, TileHeader* s) {
  s->request_id = w.request_id();
  s->step = w.step();
  s->tile = w.tile();
  s->epoch = w.epoch();
  s->image_size = w.image_size();
  s->grid = w.grid();
  s->context_length = w.context_length();
  s->target_length = w.target_length();
  s->sample_ids.assign(w.sample_ids().begin(), w.sample_ids().end());
  for (const auto& item : w.crops()) get(item, &s->crops.emplace_back());
  const MaskShape contexts{w.sample_ids_size(), w.context_length(), w.grid()}, targets{contexts.images, w.target_length(), w.grid()};
  for (const auto& list : w.contexts()) s->contexts.push_back(unpack_mask(list, contexts));
  for (const auto& list : w.targets()) s->targets.push_back(unpack_mask(list, targets));
  s->grey_samples.assign(w.grey_samples().begin(), w.grey_samples().end());
  s->pixel_bytes = w.pixel_bytes();
  s->frame_count = w.frame_count();
  get(w.pixel_hash(), &s->pixel_hash);
  get(w.digest(), &s->digest);
  s->shared = {w.shared().pid(), w.shared().fd(), w.shared().nonce()};
}

void put(const TileFrame& s, wire::TileFrame* w) {
  w->set_request_id(s.request_id);
  w->set_index(s.index);
  w->set_offset(s.offset);
}
void get(const wire::TileFrame& w, TileFrame* s) {
  s->request_id = w.request_id();
  s->index = w.index();
  s->offset = w.offset();
}

void put(const TileError& s, wire::TileError* w) {
  w->set_request_id(s.request_id);
  w->set_reason(utf8(s.reason));
  w->set_exit_code(s.exit_code);
}
void get(const wire::TileError& w, TileError* s) {
  s->request_id = w.request_id();
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const SampleRequest& s, wire::SampleRequest* w) {
  w->set_request_id(s.request_id);
  for (const auto& item : s.sample_ids) w->add_sample_ids(item);
  w->set_image_size(s.image_size);
}
void get(const wire::SampleRequest& w, SampleRequest* s) {
  s->request_id = w.request_id();
  s->sample_ids.assign(w.sample_ids().begin(), w.sample_ids().end());
  s->image_size = w.image_size();
}

void put(const SampleTile& s, wire::SampleTile* w) {
  w->set_request_id(s.request_id);
  for (const auto& item : s.sample_ids) w->add_sample_ids(item);
  for (const auto& item : s.keys) w->add_keys(item);
  for (const auto& item : s.label_names) w->add_label_names(item);
  for (const auto& item : s.labels) w->add_labels(item);
  put(s.pixel_hash, w->mutable_pixel_hash());
}
void get(const wire::SampleTile& w, SampleTile* s) {
  s->request_id = w.request_id();
  s->sample_ids.assign(w.sample_ids().begin(), w.sample_ids().end());
  s->keys.assign(w.keys().begin(), w.keys().end());
  s->label_names.assign(w.label_names().begin(), w.label_names().end());
  s->labels.assign(w.labels().begin(), w.labels().end());
  get(w.pixel_hash(), &s->pixel_hash);
}

void put(const DatasetRequest&, wire::DatasetRequest*) {}
void get(const wire::DatasetRequest&, DatasetRequest*) {}

void put(const DatasetInfo& s, wire::DatasetInfo* w) {
  put(s.manifest_digest, w->mutable_manifest_digest());
  w->set_sample_count(s.sample_count);
  for (const auto& item : s.label_names) w->add_label_names(item);
  for (const auto& item : s.class_names) w->add_class_names(item);
}
void get(const wire::DatasetInfo& w, DatasetInfo* s) {
  get(w.manifest_digest(), &s->manifest_digest);
  s->sample_count = w.sample_count();
  s->label_names.assign(w.label_names().begin(), w.label_names().end());
  s->class_names.assign(w.class_names().begin(), w.class_names().end());
}

}  // namespace tessera::proto
