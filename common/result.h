// Errors as values. A function that can fail returns Result<T>; the code names the caller's next action, the message
// the part, the values and the fix, in one sentence:
//   [data_loader] shard 12 (train-000012.tar): member at byte 40960 has no .cls; re-pack it or set data.labels: none
// Exceptions of libraries are caught at one edge each and become an Error. TESSERA_CHECK is for our own bugs only: what
// comes from a peer, a file, a config or a clock is data and never asserted.
#pragma once

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace tessera {

enum class ErrorCode {
  kRetry,         // the same call may succeed later: wait and call again
  kRebuildWorld,  // a peer of this generation is gone or differs: leave the generation, report to the coordinator
  kUsage,         // the command line is wrong: print it, exit 64
  kFixConfig,     // the configuration is wrong: print it, exit 78
  kFixData,       // data or a checkpoint is corrupt or missing: print it, exit 65
  kIo,            // disk or file system refused: free space or fix permissions, exit 74
  kUnavailable,   // a process that is needed does not answer, exit 69
  kRefused,       // the other side does not accept us (version, authentication, fence): exit as it says
  kInternal,      // our bug, exit 70
};

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  int exit_code = 0;  // 0: the code's usual one (exit_code_of)
};

// The exit code of INTERFACES.md for an error.
int exit_code_of(const Error& error);

template <typename T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

inline tl::unexpected<Error> fail(ErrorCode code, std::string message, int exit_code = 0) {
  return tl::unexpected<Error>(Error{code, std::move(message), exit_code});
}

namespace exit_codes {
inline constexpr int kDone = 0, kUsage = 64, kDataCorrupt = 65, kUnreachable = 69, kBug = 70, kIo = 74, kDrained = 75,
                     kRefused = 77, kConfig = 78, kNonFinite = 80, kTooFewWorkers = 81, kDeviceFaulty = 82,
                     kVersionMismatch = 84, kFenced = 85;
}

[[noreturn]] void check_failed(const char* expression, const char* file, int line, const std::string& detail);

}  // namespace tessera

// Stops the process with exit code 70 and the expression: for our own bugs. On in release.
#define TESSERA_CHECK(expression, ...)                                                             \
  do {                                                                                             \
    if (!(expression)) ::tessera::check_failed(#expression, __FILE__, __LINE__, std::string{__VA_ARGS__}); \
  } while (0)

// Evaluates a Result; returns its error from the enclosing function, or goes on. TESSERA_ASSIGN(auto x, f()).
#define TESSERA_CONCAT2(a, b) a##b
#define TESSERA_CONCAT(a, b) TESSERA_CONCAT2(a, b)
#define TESSERA_TRY(expression)                                                             \
  do {                                                                                      \
    auto tessera_status_ = (expression);                                                    \
    if (!tessera_status_) return ::tl::unexpected<::tessera::Error>(std::move(tessera_status_).error()); \
  } while (0)
#define TESSERA_ASSIGN(declaration, expression)                                             \
  auto TESSERA_CONCAT(tessera_result_, __LINE__) = (expression);                            \
  if (!TESSERA_CONCAT(tessera_result_, __LINE__))                                           \
    return ::tl::unexpected<::tessera::Error>(std::move(TESSERA_CONCAT(tessera_result_, __LINE__)).error()); \
  declaration = std::move(*TESSERA_CONCAT(tessera_result_, __LINE__))
