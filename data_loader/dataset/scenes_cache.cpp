#include "data_loader/dataset/scenes_cache.h"

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <unistd.h>

#include "common/file.h"

namespace tessera::data {
namespace {

constexpr std::string_view kImages = "scenes", kMasks = "scene-masks";
constexpr int kScenesVersion = 2;  // raised when pictures change, so that an old cache is not taken for a new one

bool take_number(std::string_view* text, int64_t* value) {
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), *value);
  if (error != std::errc{} || *value < 0) return false;
  text->remove_prefix(size_t(end - text->data()));
  return true;
}

}  // namespace

bool is_scenes_path(const std::string& data_path) {
  const std::string_view kind = std::string_view(data_path).substr(0, data_path.find(':'));
  return kind.size() < data_path.size() && (kind == kImages || kind == kMasks);
}

Result<ScenesOptions> parse_scenes_path(const std::string& data_path) {
  const auto refused = [&] { return fail(ErrorCode::kFixConfig, "[data_loader] '" + data_path + "' is no procedural dataset; scenes:N[:SIZE[:SEED]] is expected, such as scenes:10000 or scenes:10000:64:0"); };
  const std::string_view kind = std::string_view(data_path).substr(0, data_path.find(':'));
  std::string_view rest = std::string_view(data_path).substr(std::min(kind.size() + 1, data_path.size()));
  int64_t values[3] = {0, 64, 0};
  for (int i = 0; i < 3; ++i) {
    if (!take_number(&rest, &values[i])) return refused();
    if (rest.empty()) break;
    if (rest[0] != ':' || i == 2) return refused();
    rest.remove_prefix(1);
  }
  if (values[0] < 1 || values[0] > 100'000'000 || values[1] < 16 || values[1] > 1024) return refused();
  ScenesOptions out;
  out.pictures = kind == kMasks ? ScenePictures::kMasks : ScenePictures::kImages;
  out.count = values[0], out.size = int(values[1]), out.seed = uint64_t(values[2]);
  return out;
}

std::string cache_folder() {
  const auto variable = [](const char* name) { return std::string(std::getenv(name) ? std::getenv(name) : ""); };
  if (const std::string folder = variable("TESSERA_CACHE"); !folder.empty()) return folder;
  if (const std::string folder = variable("XDG_CACHE_HOME"); !folder.empty()) return folder + "/tessera";
  return variable("HOME") + "/.cache/tessera";
}

Result<std::string> ensure_scenes(const std::string& data_path, int threads) {
  TESSERA_ASSIGN(ScenesOptions options, parse_scenes_path(data_path));
  options.threads = threads;
  const std::string cache = cache_folder();
  const std::string folder = cache + "/" + std::string(options.pictures == ScenePictures::kMasks ? kMasks : kImages) + "-" + std::to_string(options.count) + "-" + std::to_string(options.size) + "-" + std::to_string(options.seed) + "-v" + std::to_string(kScenesVersion);
  std::error_code error;
  if (std::filesystem::exists(folder, error)) return folder;
  TESSERA_TRY(make_folders(cache));
  const std::string lock_path = folder + ".lock";
  const int lock = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock < 0) return fail(ErrorCode::kIo, "[data_loader] cannot write to the cache folder " + cache + ": " + std::strerror(errno) + "; set TESSERA_CACHE to a folder that can be written");
  while (::flock(lock, LOCK_EX) != 0 && errno == EINTR) {
  }
  const auto make = [&]() -> Result<std::string> {
    if (std::filesystem::exists(folder, error)) return folder;
    const std::string partial = folder + ".partial";
    std::filesystem::remove_all(partial, error);
    TESSERA_TRY(make_scenes(partial, options));
    std::filesystem::rename(partial, folder, error);
    if (error) return fail(ErrorCode::kIo, "[data_loader] cannot rename " + partial + " to " + folder + ": " + error.message());
    return folder;
  };
  auto made = make();
  ::close(lock);
  return made;
}

}  // namespace tessera::data
