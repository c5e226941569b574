#include "common/process_usage.h"

#include <fstream>
#include <iterator>
#include <sstream>
#include <unistd.h>

namespace tessera {

std::optional<ProcessUsage> process_usage(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t open = text.find('('), close = text.rfind(')');  // the name may hold anything
  if (open == std::string::npos || close == std::string::npos) return std::nullopt;
  ProcessUsage out;
  out.name = text.substr(open + 1, close - open - 1);
  std::istringstream fields(text.substr(close + 1));
  fields >> out.state >> out.parent;
  double user = 0, system = 0;
  int64_t pages = 0;
  std::string skipped;
  for (int field = 5; field <= 13; ++field) fields >> skipped;
  fields >> user >> system;
  for (int field = 16; field <= 23; ++field) fields >> skipped;
  fields >> pages;
  if (!fields) return std::nullopt;
  out.cpu_seconds = (user + system) / double(::sysconf(_SC_CLK_TCK));
  out.resident_bytes = pages * ::sysconf(_SC_PAGESIZE);
  return out;
}

int64_t peak_resident_bytes(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string word; status >> word;)
    if (word == "VmHWM:") {
      int64_t kib = 0;
      status >> kib;
      return kib * 1024;
    }
  return 0;
}

}  // namespace tessera
