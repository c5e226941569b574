// Internal to codec*.cpp: every payload once, and the pairs put (struct -> wire) and get (wire -> struct), field by field in
// the order of messages.h.
#pragma once

#include <string>

#include "proto/messages.h"
#include "proto/tessera.pb.h"

// X(struct and wire message, field of wire::Envelope, its case)
#define TESSERA_PAYLOADS(X)                                                     \
  X(Refused, refused, kRefused)                                                 \
  X(Shutdown, shutdown, kShutdown)                                              \
  X(Goodbye, goodbye, kGoodbye)                                                 \
  X(Reintroduce, reintroduce, kReintroduce)                                     \
  X(DaemonHello, daemon_hello, kDaemonHello)                                    \
  X(DaemonWelcome, daemon_welcome, kDaemonWelcome)                              \
  X(DaemonStatus, daemon_status, kDaemonStatus)                                 \
  X(TrainerExited, trainer_exited, kTrainerExited)                              \
  X(FenceTrainer, fence_trainer, kFenceTrainer)                                 \
  X(TrainerFenced, trainer_fenced, kTrainerFenced)                              \
  X(TrainerHello, trainer_hello, kTrainerHello)                                 \
  X(TrainerWelcome, trainer_welcome, kTrainerWelcome)                           \
  X(TrainerReady, trainer_ready, kTrainerReady)                                 \
  X(WorldStart, world_start, kWorldStart)                                       \
  X(WorldStarted, world_started, kWorldStarted)                                 \
  X(WorldFault, world_fault, kWorldFault)                                       \
  X(WorldStop, world_stop, kWorldStop)                                          \
  X(Sealed, sealed, kSealed)                                                    \
  X(WorldDirective, world_directive, kWorldDirective)                           \
  X(StepDone, step_done, kStepDone)                                             \
  X(StepDoneAck, step_done_ack, kStepDoneAck)                                   \
  X(TrainerStatus, trainer_status, kTrainerStatus)                              \
  X(CheckpointFile, checkpoint_file, kCheckpointFile)                           \
  X(CheckpointFailed, checkpoint_failed, kCheckpointFailed)                     \
  X(CheckpointPublished, checkpoint_published, kCheckpointPublished)            \
  X(WriteShare, write_share, kWriteShare)                                       \
  X(LoaderHello, loader_hello, kLoaderHello)                                    \
  X(LoaderWelcome, loader_welcome, kLoaderWelcome)                              \
  X(LoaderDataset, loader_dataset, kLoaderDataset)                              \
  X(LoaderStatus, loader_status, kLoaderStatus)                                 \
  X(ShardAssignment, shard_assignment, kShardAssignment)                        \
  X(TileRequest, tile_request, kTileRequest)                                    \
  X(TileCancel, tile_cancel, kTileCancel)                                       \
  X(TileHeader, tile_header, kTileHeader)                                       \
  X(TileFrame, tile_frame, kTileFrame)                                          \
  X(TileError, tile_error, kTileError)                                          \
  X(SampleRequest, sample_request, kSampleRequest)                              \
  X(SampleTile, sample_tile, kSampleTile)                                       \
  X(DatasetRequest, dataset_request, kDatasetRequest)                           \
  X(DatasetInfo, dataset_info, kDatasetInfo)

namespace tessera::proto {

inline void put(const Hash128& s, wire::Lanes* w) { w->set_a(s.high), w->set_b(s.low); }
inline void get(const wire::Lanes& w, Hash128* s) { *s = {w.a(), w.b()}; }
inline void put(const StateDigest& s, wire::Lanes* w) { w->set_a(s.a), w->set_b(s.b); }
inline void get(const wire::Lanes& w, StateDigest* s) { *s = {w.a(), w.b()}; }
inline void put(const Generation& s, wire::GenerationNumber* w) { w->set_term(s.term), w->set_number(s.number); }
inline void get(const wire::GenerationNumber& w, Generation* s) { *s = {w.term(), w.number()}; }
inline void put(const BuildInfo& s, wire::BuildInfo* w) {
  w->set_version(s.version);
  w->set_commit(s.commit);
  w->set_protocol(s.protocol);
}
inline void get(const wire::BuildInfo& w, BuildInfo* s) {
  s->version = w.version();
  s->commit = w.commit();
  s->protocol = w.protocol();
}

// Texts that may quote a file's name pass through this: Protobuf drops a whole message whose text is not UTF-8, and a
// failure must not be lost for the name it mentions. Bytes that are not UTF-8 become '?'.
std::string utf8(const std::string& text);

#define TESSERA_DECLARE(Name, field, number) \
  void put(const Name& s, wire::Name* w);    \
  void get(const wire::Name& w, Name* s);
TESSERA_PAYLOADS(TESSERA_DECLARE)
#undef TESSERA_DECLARE

}  // namespace tessera::proto
