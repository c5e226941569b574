// Wire form of what the coordinator, daemons and trainers say to one another.
#include "proto/codec_payloads.h"

namespace tessera::proto {

void put(const Refused& s, wire::Refused* w) {
  w->set_reason(utf8(s.reason));
  w->set_exit_code(s.exit_code);
}
void get(const wire::Refused& w, Refused* s) {
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const Shutdown& s, wire::Shutdown* w) {
  w->set_reason(utf8(s.reason));
  w->set_exit_code(s.exit_code);
}
void get(const wire::Shutdown& w, Shutdown* s) {
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const Goodbye& s, wire::Goodbye* w) {
  w->set_reason(utf8(s.reason));
  w->set_exit_code(s.exit_code);
}
void get(const wire::Goodbye& w, Goodbye* s) {
  s->reason = w.reason();
  s->exit_code = w.exit_code();
}

void put(const Reintroduce&, wire::Reintroduce*) {}
void get(const wire::Reintroduce&, Reintroduce*) {}

static void put(const DeviceSlot& s, wire::DeviceSlot* w) {
  w->set_worker_id(s.worker_id);
  w->set_device(s.device);
}
static void get(const wire::DeviceSlot& w, DeviceSlot* s) {
  s->worker_id = w.worker_id();
  s->device = w.device();
}

void put(const DaemonHello& s, wire::DaemonHello* w) {
  w->set_host(s.host);
  put(s.build, w->mutable_build());
  w->set_pid(s.pid);
  for (const auto& item : s.slots) put(item, w->add_slots());
}
void get(const wire::DaemonHello& w, DaemonHello* s) {
  s->host = w.host();
  get(w.build(), &s->build);
  s->pid = w.pid();
  for (const auto& item : w.slots()) get(item, &s->slots.emplace_back());
}

void put(const DaemonWelcome& s, wire::DaemonWelcome* w) {
  w->set_run_id(s.run_id);
  w->set_run_dir(s.run_dir);
  w->set_function_yaml(s.function_yaml);
  w->set_operation_yaml(s.operation_yaml);
}
void get(const wire::DaemonWelcome& w, DaemonWelcome* s) {
  s->run_id = w.run_id();
  s->run_dir = w.run_dir();
  s->function_yaml = w.function_yaml();
  s->operation_yaml = w.operation_yaml();
}

void put(const DaemonStatus& s, wire::DaemonStatus* w) {
  for (const auto& item : s.running) w->add_running(item);
}
void get(const wire::DaemonStatus& w, DaemonStatus* s) {
  s->running.assign(w.running().begin(), w.running().end());
}

void put(const TrainerExited& s, wire::TrainerExited* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
  w->set_exit_code(s.exit_code);
  w->set_signal(s.signal);
  w->set_cause(utf8(s.cause));
  w->set_will_restart(s.will_restart);
}
void get(const wire::TrainerExited& w, TrainerExited* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
  s->exit_code = w.exit_code();
  s->signal = w.signal();
  s->cause = w.cause();
  s->will_restart = w.will_restart();
}

void put(const FenceTrainer& s, wire::FenceTrainer* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
  w->set_reason(utf8(s.reason));
}
void get(const wire::FenceTrainer& w, FenceTrainer* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
  s->reason = w.reason();
}

void put(const TrainerFenced& s, wire::TrainerFenced* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
}
void get(const wire::TrainerFenced& w, TrainerFenced* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
}

void put(const TrainerHello& s, wire::TrainerHello* w) {
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
void get(const wire::TrainerHello& w, TrainerHello* s) {
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

void put(const TrainerWelcome& s, wire::TrainerWelcome* w) {
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
void get(const wire::TrainerWelcome& w, TrainerWelcome* s) {
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

void put(const TrainerReady&, wire::TrainerReady*) {}
void get(const wire::TrainerReady&, TrainerReady*) {}

static void put(const Member& s, wire::Member* w) {
  w->set_worker_id(s.worker_id);
  w->set_incarnation(s.incarnation);
  w->set_rank(s.rank);
  w->set_mesh_address(s.mesh_address);
}
static void get(const wire::Member& w, Member* s) {
  s->worker_id = w.worker_id();
  s->incarnation = w.incarnation();
  s->rank = w.rank();
  s->mesh_address = w.mesh_address();
}

void put(const WorldStart& s, wire::WorldStart* w) {
  put(s.generation, w->mutable_generation());
  w->set_lineage(s.lineage);
  for (const auto& item : s.members) put(item, w->add_members());
  w->set_start_step(s.start_step);
  w->set_source(int32_t(s.source));
  w->set_checkpoint_path(s.checkpoint_path);
  w->set_source_rank(s.source_rank);
  if (s.expected_digest) put(*s.expected_digest, w->mutable_expected_digest());
  w->set_stop_after(s.stop_after);
  if (s.base) put(*s.base, w->mutable_base());
  for (const auto& id : s.removed) w->add_removed(id);
}
void get(const wire::WorldStart& w, WorldStart* s) {
  get(w.generation(), &s->generation);
  s->lineage = w.lineage();
  for (const auto& item : w.members()) get(item, &s->members.emplace_back());
  s->start_step = w.start_step();
  s->source = StateSource(w.source());
  s->checkpoint_path = w.checkpoint_path();
  s->source_rank = w.source_rank();
  if (w.has_expected_digest()) get(w.expected_digest(), &s->expected_digest.emplace());
  s->stop_after = w.stop_after();
  if (w.has_base()) get(w.base(), &s->base.emplace());
  s->removed.assign(w.removed().begin(), w.removed().end());
}

void put(const WorldStarted& s, wire::WorldStarted* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  put(s.state_digest, w->mutable_state_digest());
}
void get(const wire::WorldStarted& w, WorldStarted* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  get(w.state_digest(), &s->state_digest);
}

void put(const WorldFault& s, wire::WorldFault* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  w->set_reason(utf8(s.reason));
  w->set_suspect(s.suspect);
  w->set_digests_differ(s.digests_differ);
  w->set_bad_checkpoint(s.bad_checkpoint);
}
void get(const wire::WorldFault& w, WorldFault* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  s->reason = w.reason();
  s->suspect = w.suspect();
  s->digests_differ = w.digests_differ();
  s->bad_checkpoint = w.bad_checkpoint();
}

void put(const WorldStop& s, wire::WorldStop* w) {
  put(s.generation, w->mutable_generation());
  w->set_reason(utf8(s.reason));
}
void get(const wire::WorldStop& w, WorldStop* s) {
  get(w.generation(), &s->generation);
  s->reason = w.reason();
}

void put(const Sealed& s, wire::Sealed* w) {
  put(s.generation, w->mutable_generation());
  w->set_applied(s.applied);
  w->set_prepared(s.prepared);
  put(s.state_digest, w->mutable_state_digest());
  put(s.gradient_digest, w->mutable_gradient_digest());
}
void get(const wire::Sealed& w, Sealed* s) {
  get(w.generation(), &s->generation);
  s->applied = w.applied();
  s->prepared = w.prepared();
  get(w.state_digest(), &s->state_digest);
  get(w.gradient_digest(), &s->gradient_digest);
}

void put(const WorldDirective& s, wire::WorldDirective* w) {
  put(s.generation, w->mutable_generation());
  w->set_stop_after(s.stop_after);
  w->set_checkpoint(s.checkpoint);
  w->set_reason(utf8(s.reason));
}
void get(const wire::WorldDirective& w, WorldDirective* s) {
  get(w.generation(), &s->generation);
  s->stop_after = w.stop_after();
  s->checkpoint = w.checkpoint();
  s->reason = w.reason();
}

static void put(const TimeSplit& s, wire::TimeSplit* w) {
  w->set_data(s.data);
  w->set_compute(s.compute);
  w->set_communication(s.communication);
  w->set_checkpoint(s.checkpoint);
  w->set_other(s.other);
}
static void get(const wire::TimeSplit& w, TimeSplit* s) {
  s->data = w.data();
  s->compute = w.compute();
  s->communication = w.communication();
  s->checkpoint = w.checkpoint();
  s->other = w.other();
}

void put(const StepDone& s, wire::StepDone* w) {
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
void get(const wire::StepDone& w, StepDone* s) {
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

void put(const StepDoneAck& s, wire::StepDoneAck* w) {
  w->set_step(s.step);
}
void get(const wire::StepDoneAck& w, StepDoneAck* s) {
  s->step = w.step();
}

void put(const TrainerStatus& s, wire::TrainerStatus* w) {
  put(s.generation, w->mutable_generation());
  w->set_rank(s.rank);
  w->set_step(s.step);
  w->set_phase(int32_t(s.phase));
  w->set_phase_seconds(s.phase_seconds);
  w->set_step_seconds_p50(s.step_seconds_p50);
  w->set_memory_bytes(s.memory_bytes);
  w->set_step_seconds_max(s.step_seconds_max);
}
void get(const wire::TrainerStatus& w, TrainerStatus* s) {
  get(w.generation(), &s->generation);
  s->rank = w.rank();
  s->step = w.step();
  s->phase = Phase(w.phase());
  s->phase_seconds = w.phase_seconds();
  s->step_seconds_p50 = w.step_seconds_p50();
  s->memory_bytes = w.memory_bytes();
  s->step_seconds_max = w.step_seconds_max();
}

void put(const CheckpointFile& s, wire::CheckpointFile* w) {
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
void get(const wire::CheckpointFile& w, CheckpointFile* s) {
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

void put(const CheckpointFailed& s, wire::CheckpointFailed* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  w->set_reason(utf8(s.reason));
}
void get(const wire::CheckpointFailed& w, CheckpointFailed* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  s->reason = w.reason();
}

void put(const CheckpointPublished& s, wire::CheckpointPublished* w) {
  w->set_step(s.step);
  w->set_path(s.path);
}
void get(const wire::CheckpointPublished& w, CheckpointPublished* s) {
  s->step = w.step();
  s->path = w.path();
}

void put(const WriteShare& s, wire::WriteShare* w) {
  put(s.generation, w->mutable_generation());
  w->set_step(s.step);
  w->set_rank(s.rank);
}
void get(const wire::WriteShare& w, WriteShare* s) {
  get(w.generation(), &s->generation);
  s->step = w.step();
  s->rank = w.rank();
}

}  // namespace tessera::proto
