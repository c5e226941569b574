#include "data_loader/dataset/scenes.h"

#include <cstdio>
#include <filesystem>
#include <jpeglib.h>
#include <png.h>

#include "common/file.h"
#include "data_loader/dataset/parallel.h"
#include "data_loader/dataset/scenes/render.h"
#include "data_loader/dataset/scenes/scene.h"
#include "data_loader/dataset/tar.h"

namespace tessera::data {
namespace {

constexpr int kJpegQuality = 92;

std::string encode_jpeg(const std::vector<uint8_t>& rgb, int size) {
  jpeg_compress_struct jpeg;
  jpeg_error_mgr errors;
  jpeg.err = jpeg_std_error(&errors);  // compression from memory to memory has no error but lack of memory
  jpeg_create_compress(&jpeg);
  unsigned char* out = nullptr;
  unsigned long out_size = 0;
  jpeg_mem_dest(&jpeg, &out, &out_size);
  jpeg.image_width = jpeg.image_height = JDIMENSION(size);
  jpeg.input_components = 3;
  jpeg.in_color_space = JCS_RGB;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, kJpegQuality, TRUE);
  jpeg.dct_method = JDCT_ISLOW;
  for (int c = 0; c < 3; ++c) jpeg.comp_info[c].h_samp_factor = jpeg.comp_info[c].v_samp_factor = 1;
  jpeg_start_compress(&jpeg, TRUE);
  while (jpeg.next_scanline < jpeg.image_height) {
    JSAMPROW row = const_cast<JSAMPROW>(rgb.data()) + size_t(jpeg.next_scanline) * size_t(size) * 3;
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  std::string bytes(reinterpret_cast<char*>(out), out_size);
  jpeg_destroy_compress(&jpeg);
  std::free(out);
  return bytes;
}

Result<std::string> encode_png(const std::vector<uint8_t>& grey, int size) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.width = png.height = png_uint_32(size);
  png.format = PNG_FORMAT_GRAY;
  std::string bytes(PNG_IMAGE_PNG_SIZE_MAX(png), 0);
  png_alloc_size_t length = bytes.size();
  if (!png_image_write_to_memory(&png, bytes.data(), &length, 0, grey.data(), 0, nullptr))
    return fail(ErrorCode::kInternal, std::string("[data_loader] libpng cannot write a mask: ") + png.message);
  bytes.resize(length);
  return bytes;
}

template <typename... Args>
std::string format(const char* text, Args... args) {
  char buffer[160];
  std::snprintf(buffer, sizeof buffer, text, args...);
  return buffer;
}

std::vector<uint8_t> picture_of(const scenes::Scene& scene, int size) {
  std::vector<uint8_t> rgb(size_t(size) * size_t(size) * 3);
  scenes::render(scene, size, rgb.data());
  return rgb;
}

std::vector<uint8_t> mask_of(const scenes::Scene& scene, int size) {
  std::vector<uint8_t> grey(size_t(size) * size_t(size));
  scenes::render_objects(scene, size, grey.data());
  for (uint8_t& pixel : grey) pixel = pixel == scenes::kNoObject ? 0 : uint8_t(255 - 16 * pixel);
  return grey;
}

std::string json_of(const scenes::Scene& scene) {
  return format("{\"class\":%d,\"class_name\":\"%s\",\"count\":%d,\"distance\":%.4f}", scene.label, scenes::kShapeNames[size_t(scene.label)], int(scene.objects.size()), scene.distance);
}

// The members of one sample.
Status append_sample(std::string* tar, const ScenesOptions& options, int64_t index) {
  const std::string key = format("%08lld", static_cast<long long>(index));
  const scenes::Scene scene = scenes::draw_scene(options.seed, uint64_t(index));
  if (options.pictures == ScenePictures::kMasks) {
    TESSERA_ASSIGN(const std::string png, encode_png(mask_of(scene, options.size), options.size));
    append_tar_member(tar, key + ".png", png);
  } else {
    append_tar_member(tar, key + ".jpg", encode_jpeg(picture_of(scene, options.size), options.size));
  }
  append_tar_member(tar, key + ".cls", std::to_string(scene.label));
  append_tar_member(tar, key + ".json", json_of(scene));
  return {};
}

Status check(const std::string& folder, const ScenesOptions& options) {
  if (options.count < 1 || options.count > 100'000'000 || options.size < 16 || options.size > 1024 || options.shard_size < 1)
    return fail(ErrorCode::kUsage, "[data_loader] make-scenes wants 1 to 100000000 images of 16 to 1024 pixels and at least 1 image a shard; asked for " + std::to_string(options.count) + " of " + std::to_string(options.size) + ", " + std::to_string(options.shard_size) + " a shard");
  std::error_code error;
  if (std::filesystem::exists(folder, error) && !std::filesystem::is_empty(folder, error))
    return fail(ErrorCode::kUsage, "[data_loader] " + folder + " is not empty; name a new folder for the scenes");
  return make_folders(folder);
}

}  // namespace

ScenePicture make_scene_picture(uint64_t seed, uint64_t index, int size) {
  const scenes::Scene scene = scenes::draw_scene(seed, index);
  return {picture_of(scene, size), json_of(scene), scene.label};
}

std::vector<uint8_t> make_scene_mask(uint64_t seed, uint64_t index, int size) { return mask_of(scenes::draw_scene(seed, index), size); }

Result<ScenesWritten> make_scenes(const std::string& folder, const ScenesOptions& options) {
  TESSERA_TRY(check(folder, options));
  std::string classes;
  for (const char* name : scenes::kShapeNames) classes += std::string(name) + "\n";
  TESSERA_TRY(write_file_atomic(folder + "/classes.txt", classes));
  ScenesWritten written;
  for (int64_t first = 0; first < options.count; first += options.shard_size, ++written.shards) {
    const int64_t count = std::min(options.shard_size, options.count - first);
    std::vector<std::string> parts(static_cast<size_t>(count));
    TESSERA_TRY(parallel_for(count, options.threads, [&](int64_t i) { return append_sample(&parts[size_t(i)], options, first + i); }));
    std::string shard;
    for (const std::string& part : parts) shard += part;
    finish_tar(&shard);
    TESSERA_TRY(write_file_atomic(folder + format("/scenes-%06lld.tar", static_cast<long long>(written.shards)), shard));
    written.bytes += int64_t(shard.size());
  }
  return written;
}

}  // namespace tessera::data
