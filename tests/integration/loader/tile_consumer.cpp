// A trainer's data side as a process, for sweeps and kills: the real fetch thread, no model. Takes its tiles of every step in
// order and appends one line each, "step tile digest", with one write(): the line is the commit. Started again on the same
// file it goes on behind the last whole line, as a trainer does behind its last committed step.
//
//   tile_consumer --function function.yaml --loaders FILE --steps A:B --tiles C:D --out FILE [--transport auto|tcp|shm]
//                 [--pause-ms N]
//
// The loaders file has one "name address" a line; it is read again when it changes. --pause-ms waits before each tile.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <fstream>
#include <sstream>
#include <sys/prctl.h>
#include <thread>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"
#include "worker/trainer/fetch.h"

namespace {

using namespace tessera;

proto::ShardAssignment read_loaders(const std::string& text) {
  proto::ShardAssignment out;
  std::istringstream lines(text);
  for (std::string name, address; lines >> name >> address;) out.loaders.push_back({name, address, 0, 1});
  return out;
}

void watch_loaders(std::stop_token stop, const std::string& path, trainer::Fetcher& fetcher) {
  for (std::string before = "\n"; !stop.stop_requested(); std::this_thread::sleep_for(std::chrono::milliseconds(5))) {
    const auto text = read_file(path);
    if (!text || *text == before) continue;
    fetcher.set_loaders(read_loaders(before = *text));
  }
}

// What stands in the file's whole lines; a cut last line is taken off.
int64_t committed(const std::string& path) {
  const std::string text = read_file(path).value_or("");
  const size_t end = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  if (end != text.size() && ::truncate(path.c_str(), off_t(end)) != 0) return -1;
  return std::count(text.begin(), text.end(), '\n');
}

std::pair<int64_t, int64_t> range(const std::string& text) {
  const size_t colon = text.find(':');
  return {std::stoll(text), std::stoll(text.substr(colon + 1))};
}

}  // namespace

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  CLI::App app{"Takes tiles as a trainer does", "tile_consumer"};
  std::string function_file, loaders, steps, tiles, out, transport = "auto";
  int64_t pause_ms = 0, budget_tiles = 8;
  app.add_option("--function", function_file)->required();
  app.add_option("--loaders", loaders)->required();
  app.add_option("--steps", steps)->required();
  app.add_option("--tiles", tiles)->required();
  app.add_option("--out", out)->required();
  app.add_option("--transport", transport);
  app.add_option("--pause-ms", pause_ms);
  app.add_option("--budget-tiles", budget_tiles);
  CLI11_PARSE(app, argc, argv);
  (void)log_init({.role = "consumer", .name = "", .file = "", .format = "text", .level = "info"});
  const auto text = read_file(function_file);
  const auto function = text ? parse_function(*text) : tl::unexpected(text.error());
  if (!function) return std::fprintf(stderr, "%s\n", function.error().message.c_str()), 1;
  const auto [first, end] = range(steps);
  const auto [tile_begin, tile_end] = range(tiles);
  const int64_t done = committed(out), per_step = tile_end - tile_begin;
  const int file = ::open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (done < 0 || file < 0) return std::perror(out.c_str()), 1;
  trainer::Fetcher fetcher(*function, budget_tiles * tile_pixel_bytes(*function), "consumer-" + std::to_string(getpid()), transport);
  std::jthread watcher([&](std::stop_token stop) { watch_loaders(stop, loaders, fetcher); });
  collective::AbortSignal abort;
  fetcher.want(first + done / per_step, end, {TileIndex(tile_begin), TileIndex(tile_end)});
  for (int64_t i = done; i < (end - first) * per_step; ++i) {
    const Step step = first + i / per_step;
    const TileIndex tile = TileIndex(tile_begin + i % per_step);
    if (pause_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
    const auto taken = fetcher.take(step, tile, abort);
    if (!taken) return std::fprintf(stderr, "%s\n", taken.error().message.c_str()), exit_code_of(taken.error());
    const std::string line = std::to_string(step) + " " + std::to_string(tile) + " " + to_hex(taken->header.digest) + "\n";
    if (::write(file, line.data(), line.size()) != ssize_t(line.size())) return std::perror(out.c_str()), 1;
  }
  return 0;
}
