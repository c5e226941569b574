// What `tessera up` reports of a run that has ended, from its folder.
#pragma once

#include <string>

#include "ops/cli/output.h"

namespace tessera::cli {

// Fields of INTERFACES "up --json": run_id, run_dir, status_url, step, total_steps, state_digest, batch_digest, loss,
// images_per_second, seconds, generations, checkpoints, evaluation. last_status: the newest status document known (may be
// null: then status.json of the folder is taken); seconds: wall time of this start; evaluation: null when none was made.
Json summarise(const std::string& run_id, const std::string& run_dir, const Json& last_status, double seconds, const Json& evaluation);

// The same for people, several lines.
std::string summary_text(const Json& summary);

}  // namespace tessera::cli
