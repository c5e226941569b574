#include "proto/codec.h"

#include "proto/tessera.pb.h"

// put: struct -> wire, get: wire -> struct, one pair per message, field by field in the order of messages.h.
namespace tessera::proto {
namespace {

namespace proto = tessera::proto;

void put(const Hash128& s, wire::Lanes* w) { w->set_a(s.high), w->set_b(s.low); }
void get(const wire::Lanes& w, Hash128* s) { *s = {w.a(), w.b()}; }
void put(const StateDigest& s, wire::Lanes* w) { w->set_a(s.a), w->set_b(s.b); }
void get(const wire::Lanes& w, StateDigest* s) { *s = {w.a(), w.b()}; }
void put(const Generation& s, wire::GenerationNumber* w) { w->set_term(s.term), w->set_number(s.number); }
void get(const wire::GenerationNumber& w, Generation* s) { *s = {w.term(), w.number()}; }

void put(const proto::Refused& s, wire::Refused* w) {
  w->set_reason(s.reason);
  w->set_exit_code(s.exit_code);
}
void get(const wire::Refused& w, proto::Refused* s) {
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const proto::Shutdown& s, wire::Shutdown* w) {
  w->set_reason(s.reason);
  w->set_exit_code(s.exit_code);
}
void get(const wire::Shutdown& w, proto::Shutdown* s) {
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const proto::Goodbye& s, wire::Goodbye* w) {
  w->set_reason(s.reason);
  w->set_exit_code(s.exit_code);
}
void get(const wire::Goodbye& w, proto::Goodbye* s) {
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const proto::Reintroduce&, wire::Reintroduce*) {
}
void get(const wire::Reintroduce&, proto::Reintroduce*) {
}

void put(const proto::BuildInfo& s, wire::BuildInfo* w) {
  w->set_version(s.version);
  w->set_commit(s.commit);
  w->set_protocol(s.protocol);
}
void get(const wire::BuildInfo& w, proto::BuildInfo* s) {
  s->version = w.version();
  s->commit = w.commit();
  s->protocol = w.protocol();
}

void put(const proto::DeviceSlot& s, wire::DeviceSlot* w) {
  w->set_worker_id(s.worker_id);
  w->set_device(s.device);
}
void get(const wire::DeviceSlot& w, proto::DeviceSlot* s) {
  s->worker_id = w.worker_id();
  s->device = w.device();
}

void put(const proto::DaemonHello& s, wire::DaemonHello* w) {
  w->set_host(s.host);
  put(s.build, w->mutable_build());
  w->set_pid(s.pid);
  for (const auto& item : s.slots) put(item, w->add_slots());
}
void get(const wire::DaemonHello& w, proto::DaemonHello* s) {
  s->host = w.host();
  get(w.build(), &s->build);
  s->pid = w.pid();
  for (const auto& item : w.slots()) get(item, &s->slots.emplace_back());
}

void put(const proto::DaemonWelcome& s, wire::DaemonWelcome* w) {
  w->set_run_id(s.run_id);
  w->set_run_dir(s.run_dir);
  w->set_function_yaml(s.function_yaml);
  w->set_operation_yaml(s.operation_yaml);
}
void get(const wire::DaemonWelcome& w, proto::DaemonWelcome* s) {
  s->run_id = w.run_id();
  s->run_dir = w.run_dir();
  s->function_yaml = w.function_yaml();
  s->operation_yaml = w.operation_yaml();
}

void put(const proto::DaemonStatus& s, wire::DaemonStatus* w) {
  for (const auto& item : s.running) w->add_running(item);
}
void get(const wire::DaemonStatus& w, proto::DaemonStatus* s) {
  s->running.assign(w.running().begin(), w.running().end());
}

void put(const proto::TrainerExited& s, wire::TrainerExited* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
  w->set_exit_code(s.exit_code);
  w->set_signal(s.signal);
  w->set_cause(s.cause);
  w->set_will_restart(s.will_restart);
}
void get(const wire::TrainerExited& w, proto::TrainerExited* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
  s->exit_code = w.exit_code();
  s->signal = w.signal();
  s->cause = w.cause();
  s->will_restart = w.will_restart();
}

void put(const proto::FenceTrainer& s, wire::FenceTrainer* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
  w->set_reason(s.reason);
}
void get(const wire::FenceTrainer& w, proto::FenceTrainer* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
  s->reason = w.reason();
}

void put(const proto::TrainerFenced& s, wire::TrainerFenced* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
}
void get(const wire::TrainerFenced& w, proto::TrainerFenced* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
}

void put(const proto::TrainerHello& s, wire::TrainerHello* w) {
  w->set_worker_id(s.worker_id);
  w->set_host(s.host);
  put(s.build, w->mutable_build());
  w->set_pid(s.pid);
  w->set_device(s.device);
  w->set_numerics_class(s.numerics_class);
  w->set_mesh_address(s.mesh_address);
  w->set_highest_term(s.highest_term);
  put(s.generation, w->mutable_generation());
  w->set_applied(s.applied);
}
void get(const wire::TrainerHello& w, proto::TrainerHello* s) {
  s->worker_id = w.worker_id();
  s->host = w.host();
  get(w.build(), &s->build);
  s->pid = w.pid();
  s->device = w.device();
  s->numerics_class = w.numerics_class();
  s->mesh_address = w.mesh_address();
  s->highest_term = w.highest_term();
  get(w.generation(), &s->generation);
  s->applied = w.applied();
}

void put(const proto::TrainerWelcome& s, wire::TrainerWelcome* w) {
  w->set_run_id(s.run_id);
  w->set_run_dir(s.run_dir);
  w->set_lineage(s.lineage);
  w->set_function_yaml(s.function_yaml);
  w->set_operation_yaml(s.operation_yaml);
  w->set_checkpoint_root(s.checkpoint_root);
  w->set_sample_count(s.sample_count);
  w->set_steps_per_epoch(s.steps_per_epoch);
  w->set_total_steps(s.total_steps);
  w->set_warmup_steps(s.warmup_steps);
}
void get(const wire::TrainerWelcome& w, proto::TrainerWelcome* s) {
  s->run_id = w.run_id();
  s->run_dir = w.run_dir();
  s->lineage = w.lineage();
  s->function_yaml = w.function_yaml();
  s->operation_yaml = w.operation_yaml();
  s->checkpoint_root = w.checkpoint_root();
  s->sample_count = w.sample_count();
  s->steps_per_epoch = w.steps_per_epoch();
  s->total_steps = w.total_steps();
  s->warmup_steps = w.warmup_steps();
}

void put(const proto::TrainerReady&, wire::TrainerReady*) {
}
void get(const wire::TrainerReady&, proto::TrainerReady*) {
}

void put(const proto::Member& s, wire::Member* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
  w->set_rank(s.rank);
  w->set_mesh_address(s.mesh_address);
}
void get(const wire::Member& w, proto::Member* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
  s->rank = w.rank();
  s->mesh_address = w.mesh_address();
}

void put(const proto::WorldStart& s, wire::WorldStart* w) {
  put(s.generation, w->mutable_generation());
  w->set_lineage(s.lineage);
  for (const auto& item : s.members) put(item, w->add_members());
  w->set_start_step(s.start_step);
  w->set_source(int32_t(s.source));
  w->set_checkpoint_path(s.checkpoint_path);
  w->set_source_rank(s.source_rank);
  if (s.expected_digest) put(*s.expected_digest, w->mutable_expected_digest());
  w->set_stop_after(s.stop_after);
}
void get(const wire::WorldStart& w, proto::WorldStart* s) {
  get(w.generation(), &s->generation);
  s->lineage = w.lineage();
  for (const auto& item : w.members()) get(item, &s->members.emplace_back());
  s->start_step = w.start_step();
  s->source = proto::StateSource(w.source());
  s->checkpoint_path = w.checkpoint_path();
  s->source_rank = w.source_rank();
  if (w.has_expected_digest()) get(w.expected_digest(), &s->expected_digest.emplace());
  s->stop_after = w.stop_after();
}

void put(const proto::WorldStarted& s, wire::WorldStarted* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  put(s.state_digest, w->mutable_state_digest());
}
void get(const wire::WorldStarted& w, proto::WorldStarted* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  get(w.state_digest(), &s->state_digest);
}

void put(const proto::WorldFault& s, wire::WorldFault* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  w->set_reason(s.reason);
  w->set_suspect(s.suspect);
  w->set_digests_differ(s.digests_differ);
  w->set_bad_checkpoint(s.bad_checkpoint);
}
void get(const wire::WorldFault& w, proto::WorldFault* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  s->reason = w.reason();
  s->suspect = w.suspect();
  s->digests_differ = w.digests_differ();
  s->bad_checkpoint = w.bad_checkpoint();
}

void put(const proto::WorldStop& s, wire::WorldStop* w) {
  put(s.generation, w->mutable_generation());
  w->set_reason(s.reason);
}
void get(const wire::WorldStop& w, proto::WorldStop* s) {
  get(w.generation(), &s->generation);
  s->reason = w.reason();
}

void put(const proto::Sealed& s, wire::Sealed* w) {
  put(s.generation, w->mutable_generation());
  w->set_applied(s.applied);
  w->set_prepared(s.prepared);
  put(s.state_digest, w->mutable_state_digest());
  put(s.gradient_digest, w->mutable_gradient_digest());
}
void get(const wire::Sealed& w, proto::Sealed* s) {
  get(w.generation(), &s->generation);
  s->applied = w.applied();
  s->prepared = w.prepared();
  get(w.state_digest(), &s->state_digest);
  get(w.gradient_digest(), &s->gradient_digest);
}

void put(const proto::WorldDirective& s, wire::WorldDirective* w) {
  put(s.generation, w->mutable_generation());
  w->set_stop_after(s.stop_after);
  w->set_checkpoint(s.checkpoint);
  w->set_reason(s.reason);
}
void get(const wire::WorldDirective& w, proto::WorldDirective* s) {
  get(w.generation(), &s->generation);
  s->stop_after = w.stop_after();
  s->checkpoint = w.checkpoint();
  s->reason = w.reason();
}

void put(const proto::TimeSplit& s, wire::TimeSplit* w) {
  w->set_data(s.data);
  w->set_compute(s.compute);
  w->set_communication(s.communication);
  w->set_checkpoint(s.checkpoint);
  w->set_other(s.other);
}
void get(const wire::TimeSplit& w, proto::TimeSplit* s) {
  s->data = w.data();
  s->compute = w.compute();
  s->communication = w.communication();
  s->checkpoint = w.checkpoint();
  s->other = w.other();
}

void put(const proto::StepDone& s, wire::StepDone* w) {
  put(s.generation, w->mutable_generation());
  w->set_lineage(s.lineage);
  w->set_step(s.step);
  w->set_loss(s.loss);
  w->set_lr(s.lr);
  w->set_weight_decay(s.weight_decay);
  w->set_ema(s.ema);
  w->set_gradient_norm(s.gradient_norm);
  w->set_skipped(s.skipped);
  w->set_context_length(s.context_length);
  put(s.batch_digest, w->mutable_batch_digest());
  put(s.gradient_digest, w->mutable_gradient_digest());
  put(s.state_digest, w->mutable_state_digest());
  w->set_images(s.images);
  put(s.split, w->mutable_split());
  w->set_unix_time(s.unix_time);
  w->set_effective_rank(s.effective_rank);
  for (const auto& item : s.grey_samples) w->add_grey_samples(item);
}
void get(const wire::StepDone& w, proto::StepDone* s) {
  get(w.generation(), &s->generation);
  s->lineage = w.lineage();
  s->step = w.step();
  s->loss = w.loss();
  s->lr = w.lr();
  s->weight_decay = w.weight_decay();
  s->ema = w.ema();
  s->gradient_norm = w.gradient_norm();
  s->skipped = w.skipped();
  s->context_length = w.context_length();
  get(w.batch_digest(), &s->batch_digest);
  get(w.gradient_digest(), &s->gradient_digest);
  get(w.state_digest(), &s->state_digest);
  s->images = w.images();
  get(w.split(), &s->split);
  s->unix_time = w.unix_time();
  s->effective_rank = w.effective_rank();
  s->grey_samples.assign(w.grey_samples().begin(), w.grey_samples().end());
}

void put(const proto::StepDoneAck& s, wire::StepDoneAck* w) {
  w->set_step(s.step);
}
void get(const wire::StepDoneAck& w, proto::StepDoneAck* s) {
  s->step = w.step();
}

void put(const proto::TrainerStatus& s, wire::TrainerStatus* w) {
  put(s.generation, w->mutable_generation());
  w->set_rank(s.rank);
  w->set_step(s.step);
  w->set_phase(int32_t(s.phase));
  w->set_phase_seconds(s.phase_seconds);
  w->set_step_seconds_p50(s.step_seconds_p50);
  w->set_memory_bytes(s.memory_bytes);
}
void get(const wire::TrainerStatus& w, proto::TrainerStatus* s) {
  get(w.generation(), &s->generation);
  s->rank = w.rank();
  s->step = w.step();
  s->phase = proto::Phase(w.phase());
  s->phase_seconds = w.phase_seconds();
  s->step_seconds_p50 = w.step_seconds_p50();
  s->memory_bytes = w.memory_bytes();
}

void put(const proto::CheckpointFile& s, wire::CheckpointFile* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  w->set_attempt(s.attempt);
  w->set_rank(s.rank);
  w->set_world_size(s.world_size);
  w->set_file(s.file);
  w->set_size_bytes(s.size_bytes);
  put(s.hash, w->mutable_hash());
  w->set_manifest_part(s.manifest_part);
}
void get(const wire::CheckpointFile& w, proto::CheckpointFile* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  s->attempt = w.attempt();
  s->rank = w.rank();
  s->world_size = w.world_size();
  s->file = w.file();
  s->size_bytes = w.size_bytes();
  get(w.hash(), &s->hash);
  s->manifest_part = w.manifest_part();
}

void put(const proto::CheckpointFailed& s, wire::CheckpointFailed* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  w->set_reason(s.reason);
}
void get(const wire::CheckpointFailed& w, proto::CheckpointFailed* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  s->reason = w.reason();
}

void put(const proto::CheckpointPublished& s, wire::CheckpointPublished* w) {
  w->set_step(s.step);
  w->set_path(s.path);
}
void get(const wire::CheckpointPublished& w, proto::CheckpointPublished* s) {
  s->step = w.step();
  s->path = w.path();
}

void put(const proto::LoaderHello& s, wire::LoaderHello* w) {
  w->set_name(s.name);
  w->set_host(s.host);
  put(s.build, w->mutable_build());
  w->set_pid(s.pid);
  w->set_data_address(s.data_address);
}
void get(const wire::LoaderHello& w, proto::LoaderHello* s) {
  s->name = w.name();
  s->host = w.host();
  get(w.build(), &s->build);
  s->pid = w.pid();
  s->data_address = w.data_address();
}

void put(const proto::LoaderWelcome& s, wire::LoaderWelcome* w) {
  w->set_run_id(s.run_id);
  w->set_run_dir(s.run_dir);
  w->set_function_yaml(s.function_yaml);
  w->set_data_path(s.data_path);
  w->set_manifest_folder(s.manifest_folder);
  w->set_loader_threads(s.loader_threads);
}
void get(const wire::LoaderWelcome& w, proto::LoaderWelcome* s) {
  s->run_id = w.run_id();
  s->run_dir = w.run_dir();
  s->function_yaml = w.function_yaml();
  s->data_path = w.data_path();
  s->manifest_folder = w.manifest_folder();
  s->loader_threads = w.loader_threads();
}

void put(const proto::LoaderDataset& s, wire::LoaderDataset* w) {
  put(s.manifest_digest, w->mutable_manifest_digest());
  w->set_sample_count(s.sample_count);
  w->set_shard_count(s.shard_count);
  w->set_decoder_fingerprint(s.decoder_fingerprint);
  w->set_error(s.error);
  w->set_exit_code(s.exit_code);
}
void get(const wire::LoaderDataset& w, proto::LoaderDataset* s) {
  get(w.manifest_digest(), &s->manifest_digest);
  s->sample_count = w.sample_count();
  s->shard_count = w.shard_count();
  s->decoder_fingerprint = w.decoder_fingerprint();
  s->error = w.error();
  s->exit_code = w.exit_code();
}

void put(const proto::LoaderStatus& s, wire::LoaderStatus* w) {
  w->set_images_per_second(s.images_per_second);
  w->set_images_total(s.images_total);
  w->set_queue(s.queue);
  w->set_read_seconds(s.read_seconds);
  w->set_decode_seconds(s.decode_seconds);
  w->set_resize_seconds(s.resize_seconds);
  w->set_mask_seconds(s.mask_seconds);
  w->set_send_seconds(s.send_seconds);
  w->set_idle_seconds(s.idle_seconds);
  w->set_bad_samples(s.bad_samples);
  w->set_last_bad(s.last_bad);
}
void get(const wire::LoaderStatus& w, proto::LoaderStatus* s) {
  s->images_per_second = w.images_per_second();
  s->images_total = w.images_total();
  s->queue = w.queue();
  s->read_seconds = w.read_seconds();
  s->decode_seconds = w.decode_seconds();
  s->resize_seconds = w.resize_seconds();
  s->mask_seconds = w.mask_seconds();
  s->send_seconds = w.send_seconds();
  s->idle_seconds = w.idle_seconds();
  s->bad_samples = w.bad_samples();
  s->last_bad = w.last_bad();
}

void put(const proto::LoaderShare& s, wire::LoaderShare* w) {
  w->set_name(s.name);
  w->set_data_address(s.data_address);
  w->set_first_shard(s.first_shard);
  w->set_last_shard(s.last_shard);
}
void get(const wire::LoaderShare& w, proto::LoaderShare* s) {
  s->name = w.name();
  s->data_address = w.data_address();
  s->first_shard = w.first_shard();
  s->last_shard = w.last_shard();
}

void put(const proto::ShardAssignment& s, wire::ShardAssignment* w) {
  w->set_version(s.version);
  for (const auto& item : s.loaders) put(item, w->add_loaders());
}
void get(const wire::ShardAssignment& w, proto::ShardAssignment* s) {
  s->version = w.version();
  for (const auto& item : w.loaders()) get(item, &s->loaders.emplace_back());
}

void put(const proto::CropBox& s, wire::CropBox* w) {
  w->set_top(s.top);
  w->set_left(s.left);
  w->set_height(s.height);
  w->set_width(s.width);
  w->set_flip(s.flip);
}
void get(const wire::CropBox& w, proto::CropBox* s) {
  s->top = w.top();
  s->left = w.left();
  s->height = w.height();
  s->width = w.width();
  s->flip = w.flip();
}

void put(const proto::TileRequest& s, wire::TileRequest* w) {
  w->set_request_id(s.request_id);
  w->set_step(s.step);
  w->set_tile(s.tile);
  w->set_credit_bytes(s.credit_bytes);
}
void get(const wire::TileRequest& w, proto::TileRequest* s) {
  s->request_id = w.request_id();
  s->step = w.step();
  s->tile = w.tile();
  s->credit_bytes = w.credit_bytes();
}

void put(const proto::TileCancel& s, wire::TileCancel* w) {
  w->set_request_id(s.request_id);
}
void get(const wire::TileCancel& w, proto::TileCancel* s) {
  s->request_id = w.request_id();
}

void put(const proto::TileHeader& s, wire::TileHeader* w) {
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
  for (const auto& list : s.contexts) w->add_contexts()->mutable_patches()->Add(list.begin(), list.end());
  for (const auto& list : s.targets) w->add_targets()->mutable_patches()->Add(list.begin(), list.end());
  for (const auto& item : s.grey_samples) w->add_grey_samples(item);
  w->set_pixel_bytes(s.pixel_bytes);
  w->set_frame_count(s.frame_count);
  put(s.pixel_hash, w->mutable_pixel_hash());
  put(s.digest, w->mutable_digest());
}
void get(const wire::TileHeader& w, proto::TileHeader* s) {
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
  for (const auto& list : w.contexts()) s->contexts.emplace_back(list.patches().begin(), list.patches().end());
  for (const auto& list : w.targets()) s->targets.emplace_back(list.patches().begin(), list.patches().end());
  s->grey_samples.assign(w.grey_samples().begin(), w.grey_samples().end());
  s->pixel_bytes = w.pixel_bytes();
  s->frame_count = w.frame_count();
  get(w.pixel_hash(), &s->pixel_hash);
  get(w.digest(), &s->digest);
}

void put(const proto::TileFrame& s, wire::TileFrame* w) {
  w->set_request_id(s.request_id);
  w->set_index(s.index);
  w->set_offset(s.offset);
}
void get(const wire::TileFrame& w, proto::TileFrame* s) {
  s->request_id = w.request_id();
  s->index = w.index();
  s->offset = w.offset();
}

void put(const proto::TileError& s, wire::TileError* w) {
  w->set_request_id(s.request_id);
  w->set_reason(s.reason);
  w->set_exit_code(s.exit_code);
}
void get(const wire::TileError& w, proto::TileError* s) {
  s->request_id = w.request_id();
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const proto::SampleRequest& s, wire::SampleRequest* w) {
  w->set_request_id(s.request_id);
  for (const auto& item : s.sample_ids) w->add_sample_ids(item);
  w->set_image_size(s.image_size);
}
void get(const wire::SampleRequest& w, proto::SampleRequest* s) {
  s->request_id = w.request_id();
  s->sample_ids.assign(w.sample_ids().begin(), w.sample_ids().end());
  s->image_size = w.image_size();
}

void put(const proto::SampleTile& s, wire::SampleTile* w) {
  w->set_request_id(s.request_id);
  for (const auto& item : s.sample_ids) w->add_sample_ids(item);
  for (const auto& item : s.keys) w->add_keys(item);
  for (const auto& item : s.label_names) w->add_label_names(item);
  for (const auto& item : s.labels) w->add_labels(item);
  put(s.pixel_hash, w->mutable_pixel_hash());
}
void get(const wire::SampleTile& w, proto::SampleTile* s) {
  s->request_id = w.request_id();
  s->sample_ids.assign(w.sample_ids().begin(), w.sample_ids().end());
  s->keys.assign(w.keys().begin(), w.keys().end());
  s->label_names.assign(w.label_names().begin(), w.label_names().end());
  s->labels.assign(w.labels().begin(), w.labels().end());
  get(w.pixel_hash(), &s->pixel_hash);
}

void put(const proto::DatasetRequest&, wire::DatasetRequest*) {
}
void get(const wire::DatasetRequest&, proto::DatasetRequest*) {
}

void put(const proto::DatasetInfo& s, wire::DatasetInfo* w) {
  put(s.manifest_digest, w->mutable_manifest_digest());
  w->set_sample_count(s.sample_count);
  for (const auto& item : s.label_names) w->add_label_names(item);
  for (const auto& item : s.class_names) w->add_class_names(item);
}
void get(const wire::DatasetInfo& w, proto::DatasetInfo* s) {
  get(w.manifest_digest(), &s->manifest_digest);
  s->sample_count = w.sample_count();
  s->label_names.assign(w.label_names().begin(), w.label_names().end());
  s->class_names.assign(w.class_names().begin(), w.class_names().end());
}

struct PutPayload {
  wire::Envelope* w;
  void operator()(std::monostate) const {}
  void operator()(const proto::Refused& s) const { put(s, w->mutable_refused()); }
  void operator()(const proto::Shutdown& s) const { put(s, w->mutable_shutdown()); }
  void operator()(const proto::Goodbye& s) const { put(s, w->mutable_goodbye()); }
  void operator()(const proto::Reintroduce& s) const { put(s, w->mutable_reintroduce()); }
  void operator()(const proto::DaemonHello& s) const { put(s, w->mutable_daemon_hello()); }
  void operator()(const proto::DaemonWelcome& s) const { put(s, w->mutable_daemon_welcome()); }
  void operator()(const proto::DaemonStatus& s) const { put(s, w->mutable_daemon_status()); }
  void operator()(const proto::TrainerExited& s) const { put(s, w->mutable_trainer_exited()); }
  void operator()(const proto::FenceTrainer& s) const { put(s, w->mutable_fence_trainer()); }
  void operator()(const proto::TrainerFenced& s) const { put(s, w->mutable_trainer_fenced()); }
  void operator()(const proto::TrainerHello& s) const { put(s, w->mutable_trainer_hello()); }
  void operator()(const proto::TrainerWelcome& s) const { put(s, w->mutable_trainer_welcome()); }
  void operator()(const proto::TrainerReady& s) const { put(s, w->mutable_trainer_ready()); }
  void operator()(const proto::WorldStart& s) const { put(s, w->mutable_world_start()); }
  void operator()(const proto::WorldStarted& s) const { put(s, w->mutable_world_started()); }
  void operator()(const proto::WorldFault& s) const { put(s, w->mutable_world_fault()); }
  void operator()(const proto::WorldStop& s) const { put(s, w->mutable_world_stop()); }
  void operator()(const proto::Sealed& s) const { put(s, w->mutable_sealed()); }
  void operator()(const proto::WorldDirective& s) const { put(s, w->mutable_world_directive()); }
  void operator()(const proto::StepDone& s) const { put(s, w->mutable_step_done()); }
  void operator()(const proto::StepDoneAck& s) const { put(s, w->mutable_step_done_ack()); }
  void operator()(const proto::TrainerStatus& s) const { put(s, w->mutable_trainer_status()); }
  void operator()(const proto::CheckpointFile& s) const { put(s, w->mutable_checkpoint_file()); }
  void operator()(const proto::CheckpointFailed& s) const { put(s, w->mutable_checkpoint_failed()); }
  void operator()(const proto::CheckpointPublished& s) const { put(s, w->mutable_checkpoint_published()); }
  void operator()(const proto::LoaderHello& s) const { put(s, w->mutable_loader_hello()); }
  void operator()(const proto::LoaderWelcome& s) const { put(s, w->mutable_loader_welcome()); }
  void operator()(const proto::LoaderDataset& s) const { put(s, w->mutable_loader_dataset()); }
  void operator()(const proto::LoaderStatus& s) const { put(s, w->mutable_loader_status()); }
  void operator()(const proto::ShardAssignment& s) const { put(s, w->mutable_shard_assignment()); }
  void operator()(const proto::TileRequest& s) const { put(s, w->mutable_tile_request()); }
  void operator()(const proto::TileCancel& s) const { put(s, w->mutable_tile_cancel()); }
  void operator()(const proto::TileHeader& s) const { put(s, w->mutable_tile_header()); }
  void operator()(const proto::TileFrame& s) const { put(s, w->mutable_tile_frame()); }
  void operator()(const proto::TileError& s) const { put(s, w->mutable_tile_error()); }
  void operator()(const proto::SampleRequest& s) const { put(s, w->mutable_sample_request()); }
  void operator()(const proto::SampleTile& s) const { put(s, w->mutable_sample_tile()); }
  void operator()(const proto::DatasetRequest& s) const { put(s, w->mutable_dataset_request()); }
  void operator()(const proto::DatasetInfo& s) const { put(s, w->mutable_dataset_info()); }
};

struct Name {
  const char* operator()(std::monostate) const { return "nothing"; }
  const char* operator()(const Refused&) const { return "Refused"; }
  const char* operator()(const Shutdown&) const { return "Shutdown"; }
  const char* operator()(const Goodbye&) const { return "Goodbye"; }
  const char* operator()(const Reintroduce&) const { return "Reintroduce"; }
  const char* operator()(const DaemonHello&) const { return "DaemonHello"; }
  const char* operator()(const DaemonWelcome&) const { return "DaemonWelcome"; }
  const char* operator()(const DaemonStatus&) const { return "DaemonStatus"; }
  const char* operator()(const TrainerExited&) const { return "TrainerExited"; }
  const char* operator()(const FenceTrainer&) const { return "FenceTrainer"; }
  const char* operator()(const TrainerFenced&) const { return "TrainerFenced"; }
  const char* operator()(const TrainerHello&) const { return "TrainerHello"; }
  const char* operator()(const TrainerWelcome&) const { return "TrainerWelcome"; }
  const char* operator()(const TrainerReady&) const { return "TrainerReady"; }
  const char* operator()(const WorldStart&) const { return "WorldStart"; }
  const char* operator()(const WorldStarted&) const { return "WorldStarted"; }
  const char* operator()(const WorldFault&) const { return "WorldFault"; }
  const char* operator()(const WorldStop&) const { return "WorldStop"; }
  const char* operator()(const Sealed&) const { return "Sealed"; }
  const char* operator()(const WorldDirective&) const { return "WorldDirective"; }
  const char* operator()(const StepDone&) const { return "StepDone"; }
  const char* operator()(const StepDoneAck&) const { return "StepDoneAck"; }
  const char* operator()(const TrainerStatus&) const { return "TrainerStatus"; }
  const char* operator()(const CheckpointFile&) const { return "CheckpointFile"; }
  const char* operator()(const CheckpointFailed&) const { return "CheckpointFailed"; }
  const char* operator()(const CheckpointPublished&) const { return "CheckpointPublished"; }
  const char* operator()(const LoaderHello&) const { return "LoaderHello"; }
  const char* operator()(const LoaderWelcome&) const { return "LoaderWelcome"; }
  const char* operator()(const LoaderDataset&) const { return "LoaderDataset"; }
  const char* operator()(const LoaderStatus&) const { return "LoaderStatus"; }
  const char* operator()(const ShardAssignment&) const { return "ShardAssignment"; }
  const char* operator()(const TileRequest&) const { return "TileRequest"; }
  const char* operator()(const TileCancel&) const { return "TileCancel"; }
  const char* operator()(const TileHeader&) const { return "TileHeader"; }
  const char* operator()(const TileFrame&) const { return "TileFrame"; }
  const char* operator()(const TileError&) const { return "TileError"; }
  const char* operator()(const SampleRequest&) const { return "SampleRequest"; }
  const char* operator()(const SampleTile&) const { return "SampleTile"; }
  const char* operator()(const DatasetRequest&) const { return "DatasetRequest"; }
  const char* operator()(const DatasetInfo&) const { return "DatasetInfo"; }
};

template <typename T, typename W>
bool take(const W& w, Payload* out) {
  get(w, &out->emplace<T>());
  return true;
}

bool get_payload(const wire::Envelope& w, Payload* out) {
  switch (w.payload_case()) {
    case wire::Envelope::kRefused: return take<proto::Refused>(w.refused(), out);
    case wire::Envelope::kShutdown: return take<proto::Shutdown>(w.shutdown(), out);
    case wire::Envelope::kGoodbye: return take<proto::Goodbye>(w.goodbye(), out);
    case wire::Envelope::kReintroduce: return take<proto::Reintroduce>(w.reintroduce(), out);
    case wire::Envelope::kDaemonHello: return take<proto::DaemonHello>(w.daemon_hello(), out);
    case wire::Envelope::kDaemonWelcome: return take<proto::DaemonWelcome>(w.daemon_welcome(), out);
    case wire::Envelope::kDaemonStatus: return take<proto::DaemonStatus>(w.daemon_status(), out);
    case wire::Envelope::kTrainerExited: return take<proto::TrainerExited>(w.trainer_exited(), out);
    case wire::Envelope::kFenceTrainer: return take<proto::FenceTrainer>(w.fence_trainer(), out);
    case wire::Envelope::kTrainerFenced: return take<proto::TrainerFenced>(w.trainer_fenced(), out);
    case wire::Envelope::kTrainerHello: return take<proto::TrainerHello>(w.trainer_hello(), out);
    case wire::Envelope::kTrainerWelcome: return take<proto::TrainerWelcome>(w.trainer_welcome(), out);
    case wire::Envelope::kTrainerReady: return take<proto::TrainerReady>(w.trainer_ready(), out);
    case wire::Envelope::kWorldStart: return take<proto::WorldStart>(w.world_start(), out);
    case wire::Envelope::kWorldStarted: return take<proto::WorldStarted>(w.world_started(), out);
    case wire::Envelope::kWorldFault: return take<proto::WorldFault>(w.world_fault(), out);
    case wire::Envelope::kWorldStop: return take<proto::WorldStop>(w.world_stop(), out);
    case wire::Envelope::kSealed: return take<proto::Sealed>(w.sealed(), out);
    case wire::Envelope::kWorldDirective: return take<proto::WorldDirective>(w.world_directive(), out);
    case wire::Envelope::kStepDone: return take<proto::StepDone>(w.step_done(), out);
    case wire::Envelope::kStepDoneAck: return take<proto::StepDoneAck>(w.step_done_ack(), out);
    case wire::Envelope::kTrainerStatus: return take<proto::TrainerStatus>(w.trainer_status(), out);
    case wire::Envelope::kCheckpointFile: return take<proto::CheckpointFile>(w.checkpoint_file(), out);
    case wire::Envelope::kCheckpointFailed: return take<proto::CheckpointFailed>(w.checkpoint_failed(), out);
    case wire::Envelope::kCheckpointPublished: return take<proto::CheckpointPublished>(w.checkpoint_published(), out);
    case wire::Envelope::kLoaderHello: return take<proto::LoaderHello>(w.loader_hello(), out);
    case wire::Envelope::kLoaderWelcome: return take<proto::LoaderWelcome>(w.loader_welcome(), out);
    case wire::Envelope::kLoaderDataset: return take<proto::LoaderDataset>(w.loader_dataset(), out);
    case wire::Envelope::kLoaderStatus: return take<proto::LoaderStatus>(w.loader_status(), out);
    case wire::Envelope::kShardAssignment: return take<proto::ShardAssignment>(w.shard_assignment(), out);
    case wire::Envelope::kTileRequest: return take<proto::TileRequest>(w.tile_request(), out);
    case wire::Envelope::kTileCancel: return take<proto::TileCancel>(w.tile_cancel(), out);
    case wire::Envelope::kTileHeader: return take<proto::TileHeader>(w.tile_header(), out);
    case wire::Envelope::kTileFrame: return take<proto::TileFrame>(w.tile_frame(), out);
    case wire::Envelope::kTileError: return take<proto::TileError>(w.tile_error(), out);
    case wire::Envelope::kSampleRequest: return take<proto::SampleRequest>(w.sample_request(), out);
    case wire::Envelope::kSampleTile: return take<proto::SampleTile>(w.sample_tile(), out);
    case wire::Envelope::kDatasetRequest: return take<proto::DatasetRequest>(w.dataset_request(), out);
    case wire::Envelope::kDatasetInfo: return take<proto::DatasetInfo>(w.dataset_info(), out);
    case wire::Envelope::PAYLOAD_NOT_SET: return false;
  }
  return false;
}

// What the receiver may rely on without looking again.
Status check(const TileHeader& h) {
  const auto bad = [](const std::string& what) { return fail(ErrorCode::kFixData, "[proto] TileHeader: " + what); };
  const size_t images = h.sample_ids.size();
  if (images == 0 || h.crops.size() != images) return bad("crops and samples differ in number");
  if (h.image_size <= 0 || h.grid <= 0 || h.context_length < 0 || h.target_length < 0 || h.pixel_bytes < 0 || h.frame_count < 0) return bad("a negative size");
  if (h.pixel_bytes != int64_t(images) * h.image_size * h.image_size * 3) return bad("pixel_bytes do not fit the images");
  const int64_t patches = int64_t{h.grid} * h.grid;
  for (const auto* lists : {&h.contexts, &h.targets}) {
    const size_t length = images * size_t(lists == &h.contexts ? h.context_length : h.target_length);
    for (const auto& list : *lists) {
      if (list.size() != length) return bad("a mask list has another length than its header says");
      for (const uint16_t patch : list)
        if (patch >= patches) return bad("a mask names a patch outside the grid");
    }
  }
  return {};
}
Status check(const SampleTile& t) {
  if (t.labels.size() != t.sample_ids.size() * t.label_names.size() || t.keys.size() != t.sample_ids.size())
    return fail(ErrorCode::kFixData, "[proto] SampleTile: keys or labels do not fit the samples");
  return {};
}
Status check(const TrainerStatus& s) {
  if (int32_t(s.phase) < 0 || s.phase > Phase::kFinished) return fail(ErrorCode::kFixData, "[proto] TrainerStatus: unknown phase");
  return {};
}
Status check(const WorldStart& s) {
  if (int32_t(s.source) < 0 || s.source > StateSource::kPeer) return fail(ErrorCode::kFixData, "[proto] WorldStart: unknown source of state");
  for (size_t i = 0; i < s.members.size(); ++i)
    if (s.members[i].rank != Rank(i)) return fail(ErrorCode::kFixData, "[proto] WorldStart: members are not in rank order");
  return {};
}
template <typename T>
Status check(const T&) {
  return {};
}

}  // namespace

std::string encode(const Envelope& e) {
  wire::Envelope w;
  w.set_protocol(e.protocol);
  w.set_cluster_id(e.cluster_id);
  w.set_run_id(e.run_id);
  w.set_sender(e.sender);
  w.set_incarnation(e.incarnation);
  w.set_sequence(e.sequence);
  std::visit(PutPayload{&w}, e.payload);
  return w.SerializeAsString();
}

Result<Envelope> decode(std::string_view bytes) {
  wire::Envelope w;
  if (bytes.size() > size_t{1} << 30 || !w.ParseFromArray(bytes.data(), int(bytes.size())))
    return fail(ErrorCode::kFixData, "[proto] " + std::to_string(bytes.size()) + " bytes are no Tessera message");
  Envelope e;
  e.protocol = w.protocol();
  e.cluster_id = w.cluster_id();
  e.run_id = w.run_id();
  e.sender = w.sender();
  e.incarnation = w.incarnation();
  e.sequence = w.sequence();
  if (!get_payload(w, &e.payload)) return fail(ErrorCode::kFixData, "[proto] a message without a payload that this version knows");
  TESSERA_TRY(std::visit([](const auto& payload) { return check(payload); }, e.payload));
  return e;
}

const char* payload_name(const Payload& payload) { return std::visit(Name{}, payload); }

}  // namespace tessera::proto
