// `tessera evaluate report RUN`: one self-contained HTML page about a run, finished or not: curves, evaluations, pictures,
// configuration, digests. Reads the run's files only; neither the model nor data.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"

namespace tessera::evaluate {

// run: its folder, or its name below runs/. out: HTML file; empty: report.html in the run's folder. Parts that are missing
// or damaged are left out and named on the page. Returns {"schema", "out", "bytes", "steps", "evaluations", "pictures", "checkpoints"}.
// Errors: kFixData (no run there); kIo.
Result<nlohmann::ordered_json> write_report(const std::string& run, const std::string& out);

}  // namespace tessera::evaluate
