// Images per second and core: whole libjpeg decode (the limit that other loaders stop at) against window decode and the
// whole path, from plain JPEGs and from repacked ones, on a folder of photos (default ../shared/data/photos); masks and order beside it. CPU time of this thread;
// best of three rounds. Prints one JSON object on the last line.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data_loader/decode/codecs.h"
#include "data_loader/decode/decode.h"
#include "data_loader/decode/packed_jpeg.h"
#include "data_loader/masking/masking.h"
#include "data_loader/order/order.h"
#include "data_loader/transform/sample_transform.h"

namespace {

using namespace tessera;
using namespace tessera::data;

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

double best_rate(int items, const std::function<void(int)>& one) {
  double best = 1e30;
  for (int round = 0; round < 3; ++round) {
    const double begin = cpu_seconds();
    for (int i = 0; i < items; ++i) one(i);
    best = std::min(best, cpu_seconds() - begin);
  }
  return items / best;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::vector<uint8_t>> photos;
  const std::filesystem::path folder = argc > 1 ? argv[1] : "../shared/data/photos";
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
    std::ifstream in(entry.path(), std::ios::binary);
    photos.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    if (!image_size(photos.back())) photos.pop_back();
  }
  if (photos.empty()) return std::fprintf(stderr, "no images in %s\n", folder.c_str()), 65;
  const int n = int(photos.size());
  FunctionConfig f;
  std::vector<uint8_t> out(size_t(f.model.image_size * f.model.image_size * 3));
  nlohmann::json report{{"schema", 1}, {"images", n}};
  const auto line = [&](const char* name, double rate, const char* unit) {
    std::fprintf(stderr, "%-34s %12.0f %s\n", name, rate, unit);
    report[name] = rate;
  };
  uint64_t used = 0;
  line("whole_decode", best_rate(n, [&](int i) { used += decode(photos[size_t(i)])->rgb[0]; }), "images/s");
  std::vector<std::vector<uint8_t>> packed;
  double plain_bytes = 0, packed_bytes = 0;
  for (const auto& photo : photos) {
    const auto made = pack_jpeg(photo);
    packed.push_back(made ? std::vector<uint8_t>(made->begin(), made->end()) : photo);
    plain_bytes += double(photo.size()), packed_bytes += double(packed.back().size());
  }
  line("repacked_size_ratio_x1000", 1000 * packed_bytes / plain_bytes, "/ 1000");
  WindowImage window;
  const auto window_of = [&](int i, const std::vector<uint8_t>& bytes) {
    const proto::CropBox box = crop_of(f, 0, i, *image_size(bytes));
    return PixelWindow{box.top, box.left, box.height, box.width};
  };
  line("window_decode_library", best_rate(n, [&](int i) {
         const auto& bytes = photos[size_t(i)];
         used += jpeg_decode_window(bytes, window_of(i, bytes), window, {}, EntropyCode::kLibrary).has_value();
       }), "images/s");
  for (const bool repacked : {false, true}) {
    const auto& files = repacked ? packed : photos;
    const std::string suffix = repacked ? "_repacked" : "";
    line(("window_decode" + suffix).c_str(), best_rate(n, [&](int i) { used += decode_window(files[size_t(i)], window_of(i, files[size_t(i)]), window).has_value(); }), "images/s");
    for (const char* interpolation : {"bilinear", "bicubic"}) {
      f.data.interpolation = interpolation;
      auto transform = *SampleTransform::create(f);
      line(("decode_crop_resize_" + (interpolation + suffix)).c_str(), best_rate(n, [&](int i) { used += transform.training_crop(files[size_t(i)], 0, i, out.data()).has_value(); }), "images/s");
      std::fprintf(stderr, "%34s decode %.3f ms, resize %.3f ms\n", "", transform.decode_seconds() / (3 * n) * 1e3, transform.resize_seconds() / (3 * n) * 1e3);
    }
  }
  report["pipeline_to_whole_decode"] = report["decode_crop_resize_bilinear"].get<double>() / report["whole_decode"].get<double>();
  report["pipeline_to_whole_decode_repacked"] = report["decode_crop_resize_bilinear_repacked"].get<double>() / report["whole_decode"].get<double>();
  f.batch.tile_size = 128, f.batch.tiles = 1;
  for (const char* mode : {"uniform", "reference"}) {
    f.masks.mode = mode;
    line((std::string("masks_") + mode).c_str(), 128 * best_rate(200, [&](int i) { used += uint64_t(draw_group_masks(f, i, 0)->context_length); }), "images/s");
  }
  const EpochOrder order(f, 1281167, {}, 0);
  line("order_global", best_rate(100000, [&](int i) { used += uint64_t(order.sample_at(i)); }), "samples/s");
  report["used"] = used;
  std::printf("%s\n", report.dump().c_str());
  return 0;
}
