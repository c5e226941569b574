// Checkpoints on disk as the coordinator sees them: joining the ranks' parts into one manifest and renaming the attempt,
// listing what is there, removing what has retired. The folder is the truth, the catalogue a cache of it.
#pragma once

#include "coordinator/machine.h"

namespace tessera::coordinator {

// Writes manifest.json (last) and renames root/attempt to root/step-%012d. The entry says ok false with the reason when it
// cannot. Before the rename the term claim must still be the newest (claim_is_newest).
CheckpointEntry publish(const std::string& root, uint64_t term, const PublishCheckpoint& effect);
// Every published checkpoint, with the manifest's facts; broken ones with ok false.
std::map<Step, CheckpointEntry> list_checkpoints(const std::string& root);
// Removes attempts that no world will finish.
void remove_attempts(const std::string& root);
void remove_checkpoint(const std::string& path);
// Copies a whole checkpoint folder (an import, or another run's) to its step's place below `root` and returns its step.
// Its networks must have the function's shape; everything else may differ. Hashes are verified when trainers read it.
// Errors: kUsage (no checkpoint), kFixConfig (another model, naming both), kFixData (damaged), kIo (disk full; nothing is left).
Result<Step> copy_root_checkpoint(const std::string& folder, const FunctionConfig& function, const std::string& root);

// Claims the next term: 1 + the largest of `known` and the term files below root, by exclusive create of root/.term-N.
Result<uint64_t> claim_term(const std::string& root, uint64_t known);
bool claim_is_newest(const std::string& root, uint64_t term);

}  // namespace tessera::coordinator
