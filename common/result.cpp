#include "common/result.h"

#include <cstdio>
#include <cstdlib>
#include <unistd.h>

namespace tessera {

int exit_code_of(const Error& error) {
  if (error.exit_code != 0) return error.exit_code;
  switch (error.code) {
    case ErrorCode::kUsage: return exit_codes::kUsage;
    case ErrorCode::kFixConfig: return exit_codes::kConfig;
    case ErrorCode::kFixData: return exit_codes::kDataCorrupt;
    case ErrorCode::kIo: return exit_codes::kIo;
    case ErrorCode::kUnavailable:
    case ErrorCode::kRetry: return exit_codes::kUnreachable;
    case ErrorCode::kRefused: return exit_codes::kRefused;
    case ErrorCode::kRebuildWorld:
    case ErrorCode::kInternal: return exit_codes::kBug;
  }
  return exit_codes::kBug;
}

void check_failed(const char* expression, const char* file, int line, const std::string& detail) {
  std::fprintf(stderr, "tessera: internal error at %s:%d: %s does not hold%s%s. Please report this.\n", file, line, expression,
               detail.empty() ? "" : ": ", detail.c_str());
  std::fflush(stderr);
  _exit(exit_codes::kBug);
}

}  // namespace tessera
