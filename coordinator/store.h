// What survives the coordinator: SQLite (WAL, one writer, synchronous=FULL) for decisions, and the append-only files that
// people and notebooks read (metrics.jsonl, events.jsonl). Owned by the loop thread.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/machine.h"
#include "coordinator/recover.h"

struct sqlite3;

namespace tessera::coordinator {

struct StoredEvent {
  int64_t id = 0;
  double unix_time = 0;
  std::string severity, text;
};

class Store {
 public:
  // Errors: kFixConfig (network file system), kUsage (another coordinator has it open, with its pid), kFixData (damaged: says how to go on from the checkpoints), kIo.
  static Result<std::unique_ptr<Store>> open(const std::string& run_dir);
  ~Store();

  Result<std::map<std::string, std::string>> read_meta();
  Status write_meta(const std::string& key, const std::string& value);
  // Durable when it returns. Also appends to metrics.jsonl.
  Status write_step(const proto::StepDone& done, const Hash128& batch_chain);
  // A row of a ledger that was read from elsewhere: not appended to metrics.jsonl, which has it. In one transaction.
  Status restore_steps(const std::string& lineage, const std::vector<RecoveredStep>& steps);
  struct LedgerRow {
    Step step = 0;
    StepRecord record;
  };
  // Every committed step of the lineage, in order.
  Result<std::vector<LedgerRow>> read_ledger(const std::string& lineage);
  Status write_event(const std::string& severity, const std::string& text);
  const std::vector<StoredEvent>& events() const { return events_; }  // the newest few hundred

 private:
  Store() = default;
  Status execute(const std::string& sql);
  Status lock();
  Status insert_step(const std::string& lineage, const RecoveredStep& step);
  sqlite3* db_ = nullptr;
  std::string run_dir_;
  int metrics_fd_ = -1, events_fd_ = -1, lock_fd_ = -1;
  std::vector<StoredEvent> events_;
  int64_t next_event_ = 1;
};

}  // namespace tessera::coordinator
