// tessera-data: index, inspect, verify, repack datasets; make the procedural one. `tessera data ...` runs it.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <thread>

#include "common/version.h"
#include "data_loader/tool/bench_loader.h"
#include "data_loader/tool/commands.h"

namespace {

using namespace tessera;

void print_text(const nlohmann::json& result) {
  const auto number = [&](const char* name) { return static_cast<long long>(result.at(name).get<int64_t>()); };
  std::printf("%lld samples in %lld shards, %.1f MB, manifest_digest %s\n", number("samples"), number("shards"), double(number("bytes")) / 1e6, result.at("manifest_digest").get<std::string>().c_str());
  std::printf("%s %s, manifest %s%s\n", result.at("kind").get<std::string>().c_str(), result.at("source").get<std::string>().c_str(), result.at("manifest").get<std::string>().c_str(), result.at("indexed").get<bool>() ? " (made now)" : "");
  for (const char* name : {"labels", "label_ranges", "classes", "first"})
    if (result.contains(name) && !result[name].empty()) std::printf("%s: %s\n", name, result[name].dump().c_str());
  if (result.contains("size_ratio"))
    std::printf("repacked in %.1f s: %lld images packed, %lld kept as they were, %.3f times the size\n", result["seconds"].get<double>(), number("packed"), number("kept"), result["size_ratio"].get<double>());
  if (result.contains("images_per_second")) std::printf("made in %.1f s, %.0f images/s\n", result["seconds"].get<double>(), result["images_per_second"].get<double>());
  for (const auto& bad : result.at("bad")) std::printf("bad: %s\n", bad.at("reason").get<std::string>().c_str());
}

int report(const Result<nlohmann::json>& result, bool json, bool bad_is_failure) {
  if (!result) {
    if (json) std::printf("%s\n", nlohmann::json{{"schema", 1}, {"error", result.error().message}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    std::fprintf(stderr, "tessera-data: %s\n", result.error().message.c_str());
    return exit_code_of(result.error());
  }
  if (json) std::printf("%s\n", result->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  else print_text(*result);
  return bad_is_failure && !result->at("bad").empty() ? exit_codes::kDataCorrupt : exit_codes::kDone;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Datasets of Tessera: folders of images and WebDataset tar shards", "tessera-data"};
  app.set_version_flag("--version", std::string(kVersion));
  app.require_subcommand(1);
  app.fallthrough();
  bool json = false;
  data::OpenOptions open;
  open.threads = int(std::max(1u, std::thread::hardware_concurrency()));
  app.add_flag("--json", json, "Print one JSON object on the last line");
  app.add_option("--threads", open.threads, "Threads; never changes a digest")->check(CLI::Range(1, 1024));
  app.add_option("--manifests", open.manifest_folder, "Folder for manifests of read-only data");
  app.add_option("--cache-dir", open.remote.cache_dir, "Folder for blocks of http and s3 data; see operation.remote");
  app.add_option("--cache-bytes", open.remote.cache_bytes, "Its size at most")->transform(CLI::AsSizeValue(false));
  app.add_option("--retries", open.remote.http.retries, "Repetitions of a request that may succeed later")->check(CLI::Range(0, 100));
  app.add_option("--stall-seconds", open.remote.http.stall_seconds, "A download under 1 kB/s for so long has failed")->check(CLI::Range(1, 3600));
  CLI::App* index = app.add_subcommand("index", "Make the manifest of a dataset");
  CLI::App* inspect = app.add_subcommand("inspect", "Show what a dataset holds");
  CLI::App* verify = app.add_subcommand("verify", "Read, check and decode every sample; 65 if any is bad");
  CLI::App* scenes = app.add_subcommand("make-scenes", "Write the procedural dataset as tar shards");
  for (CLI::App* command : {index, inspect, verify}) command->add_option("path", open.data_path, "Folder of images, folder or pattern of tar shards, http(s):// or s3:// shards, or scenes:N")->required();
  index->add_flag("--again", open.index_again, "Index even when the manifest looks fresh");
  std::string folder;
  CLI::App* repack = app.add_subcommand("repack", "Write a dataset again in shards that decode several times faster; losslessly");
  repack->add_option("path", open.data_path, "The dataset")->required();
  repack->add_option("--out", folder, "Folder to write, new or empty; an interrupted repack to it goes on")->required();
  data::ScenesOptions options;
  scenes->add_option("--out", folder, "Folder to write, new or empty")->required();
  std::string masks;
  scenes->add_option("--masks", masks, "Folder for masks of the same samples, new or empty: which object covers each pixel");
  scenes->add_option("--count", options.count, "Images")->required();
  scenes->add_option("--size", options.size, "Side in pixels");
  scenes->add_option("--seed", options.seed, "Seed");
  scenes->add_option("--shard-size", options.shard_size, "Images per shard");
  data::BenchLoaderOptions bench_options;
  CLI::App* bench = app.add_subcommand("bench", "Measures this machine")->require_subcommand(1);
  CLI::App* loader = bench->add_subcommand("loader", "Tiles from a loader process to another");
  loader->add_option("--data", open.data_path, "Folder of images, tar shards, or scenes:N")->required();
  loader->add_option("--size", bench_options.size, "Pixels of a side")->check(CLI::Range(8, 4096))->capture_default_str();
  loader->add_option("--patch", bench_options.patch, "Pixels of a patch")->check(CLI::Range(1, 256))->capture_default_str();
  loader->add_option("--tile", bench_options.tile, "Images of a tile")->check(CLI::Range(1, 65536))->capture_default_str();
  loader->add_option("--threads", bench_options.threads, "Threads of the loader")->check(CLI::Range(1, 1024))->capture_default_str();
  loader->add_option("--seconds", bench_options.seconds, "To measure for")->check(CLI::Range(0.5, 3600.0))->capture_default_str();
  loader->add_option("--in-flight", bench_options.in_flight, "Tiles asked for ahead")->check(CLI::Range(1, 1024))->capture_default_str();
  loader->add_option("--transport", bench_options.transport, "tcp or shm")->check(CLI::IsMember({"tcp", "shm"}))->capture_default_str();
  loader->add_flag("--json", json, "Print one JSON object on the last line");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? exit_codes::kDone : exit_codes::kUsage;
  }
  options.threads = open.threads;
  if (*bench) {
    const auto result = data::bench_loader(open, bench_options);
    if (!result || json) return report(result, json, false);
    const auto& r = *result;
    std::printf("%.0f images/s (%.0f to %.0f) over %s with %d loader threads, %.3f ms CPU an image, %.0f bytes a sample, loader memory %.0f MB\n", r["images_per_second"]["median"].get<double>(),
                r["images_per_second"]["min"].get<double>(), r["images_per_second"]["max"].get<double>(), bench_options.transport.c_str(), bench_options.threads, 1e3 * r["cpu_seconds_per_image"].get<double>(), r["bytes_per_sample"].get<double>(),
                r["rss_bytes"].get<double>() / 1e6);
    for (const auto& [stage, seconds] : r["split"].items()) std::printf("  %-7s %.3f ms\n", stage.c_str(), 1e3 * seconds.get<double>());
    return exit_codes::kDone;
  }
  if (*index) return report(data::index_command(open), json, false);
  if (*inspect) return report(data::inspect_command(open), json, false);
  if (*repack) return report(data::repack_command(open, folder), json, false);
  if (*verify) return report(data::verify_command(open), json, true);
  return report(data::make_scenes_command(folder, masks, options, open), json, false);
}
