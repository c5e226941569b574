// What a running process is and uses, as the kernel tells it (proc(5)). Linux.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <sys/types.h>

namespace tessera {

struct ProcessUsage {
  std::string name;         // of the program, at most 15 characters
  char state = '?';         // R running, S sleeping, T stopped by a signal, Z ended, ...
  pid_t parent = 0;
  double cpu_seconds = 0;   // user and system, of all threads
  int64_t resident_bytes = 0;
};
// Empty when there is no such process.
std::optional<ProcessUsage> process_usage(pid_t pid);

// Most bytes that were ever resident; 0 when there is no such process.
int64_t peak_resident_bytes(pid_t pid);

}  // namespace tessera
