// Named places where a test may have the process killed, as kill -9 would: between two writes that must be safe to be cut
// apart. TESSERA_CRASH_AT="<name>=<marker file>" kills the first process that comes by; the marker file is made first, so that
// whoever is started again passes. Without the variable a point costs one test of a null pointer.
#pragma once

#include <string_view>

namespace tessera {

// In the order in which a run comes by:
//   term.claimed             the coordinator holds a new term, its store does not say so yet
//   world.stored             a generation is in the store, nobody has been told
//   step.line_written        a committed step is in metrics.jsonl, not in the store
//   step.row_written         it is in the store, its sender does not know
//   checkpoint.share_begun   a trainer has made the attempt's folder, nothing else
//   checkpoint.share_written its share is on disk, the coordinator does not know
//   publish.manifest_written the manifest is in the attempt's folder, which has not got its name yet
//   publish.renamed          the checkpoint has its name, the folder above is not synced, nobody has been told
//   publish.removed          an old checkpoint is half removed
void crash_point(std::string_view name);

}  // namespace tessera
