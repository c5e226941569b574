// A status document in words. Pure; missing or null fields are left out, never an error.
#pragma once

#include <string>

#include "ops/cli/output.h"

namespace tessera::cli {

// "step 312/1,400 (22 %)  loss 0.0312  610 images/s  ETA 1 min 55 s"; when the run is not RUNNING: "STARTING: waiting for 2 workers".
std::string status_line(const Json& status);

// The document as a small page: state, progress, workers and loaders with their reasons, checkpoint, alerts.
std::string status_page(const Json& status);

// "14:03:07 warning  worker a/0 is lost: ..."
std::string event_line(const Json& event);

// The evaluation of `tessera-model evaluate linear --json` as a table: probe, value, standard error, random_init, pixels.
std::string evaluation_table(const Json& evaluation);

// A number or a text of a nested document; the fallback when it is absent, null or of another type.
double number_at(const Json& document, const std::string& pointer, double fallback = 0);
std::string text_at(const Json& document, const std::string& pointer, const std::string& fallback = "");

}  // namespace tessera::cli
