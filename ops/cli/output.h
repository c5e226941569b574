// How the command speaks: results on stdout, everything else on stderr; with --json one object on the last line of stdout.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"

namespace tessera::cli {

using Json = nlohmann::ordered_json;

enum class Format {
  kText,  // for people
  kJson,  // one JSON object on the last line
};

// Prints the object on one line of stdout, with "schema": 1 first.
void print_json(const Json& fields);
// The sentence on stderr; with kJson also {"schema":1,"error":...,"exit_code":...} on stdout. Returns the exit code.
int report(const Error& error, Format format);
// A line on stderr. Ends a progress line first.
void say(const std::string& line);

// Whether stderr is a terminal that takes control sequences (TERM is not dumb).
bool stderr_is_terminal();
// One line that the next call or say() replaces. On a terminal only.
void progress_line(const std::string& line);

// "3 h 12 min", "1 min 55 s", "8.2 s".
std::string human_seconds(double seconds);
// "12,345".
std::string human_count(int64_t value);
// Local time of a Unix time, "14:03:07".
std::string clock_time(double unix_seconds);

}  // namespace tessera::cli
