#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <unistd.h>

#include "common/config.h"
#include "common/file.h"
#include "worker/evaluate/commands.h"
#include "worker/evaluate/png_sheet.h"
#include "worker/evaluate/samples.h"

namespace tessera::evaluate {
namespace {

constexpr Color kPaper{250, 249, 246}, kHidden{214, 212, 206}, kColors[] = {{222, 82, 60}, {44, 123, 182}, {241, 163, 64}, {90, 155, 87}, {148, 103, 189}, {23, 160, 170}};
constexpr int kGap = 10;

// One row per image: the crop, what the context encoder sees, the crop with its target blocks.
void draw_row(Canvas& canvas, int top, const proto::TileHeader& h, const uint8_t* pixels, int image, int zoom) {
  const int side = h.image_size * zoom, patch = side / h.grid;
  const auto place = [&](uint16_t p, int left) { return std::pair{left + p % h.grid * patch, top + p / h.grid * patch}; };
  const int first = kGap, second = first + side + kGap, third = second + side + kGap;
  canvas.draw_image(first, top, pixels, h.image_size, zoom);
  canvas.draw_image(second, top, pixels, h.image_size, zoom);
  std::vector<bool> seen(size_t(h.grid) * size_t(h.grid), false);
  for (const auto& list : h.contexts)
    for (int i = 0; i < h.context_length; ++i) seen[list[size_t(image) * size_t(h.context_length) + size_t(i)]] = true;
  for (size_t p = 0; p < seen.size(); ++p) {
    const auto [x, y] = place(uint16_t(p), second);
    if (!seen[p]) canvas.shade(x, y, patch, patch, kHidden, 1);
  }
  canvas.draw_image(third, top, pixels, h.image_size, zoom);
  canvas.shade(third, top, side, side, kPaper, 0.35);
  for (size_t t = 0; t < h.targets.size(); ++t)
    for (int i = 0; i < h.target_length; ++i) {
      const auto [x, y] = place(h.targets[t][size_t(image) * size_t(h.target_length) + size_t(i)], third);
      canvas.shade(x, y, patch, patch, kColors[t % std::size(kColors)], 0.45);
    }
}

Status draw_masks(const FunctionConfig& function, const std::string& data, const std::string& out, int64_t step, int rows) {
  const auto temporary = std::filesystem::temp_directory_path() / ("tessera-function-" + std::to_string(::getpid()) + ".yaml");
  TESSERA_TRY(write_file_atomic(temporary.string(), print_function(function)));
  auto source = SampleSource::open(data, 1, {"--function", temporary.string()});
  std::filesystem::remove(temporary);
  if (!source) return tl::unexpected(source.error());
  TESSERA_ASSIGN(const auto tile, (*source)->tile(step, 0, tile_pixel_bytes(function)));
  const auto& [header, pixels] = tile;
  const int zoom = std::max(1, 160 / header.image_size), side = header.image_size * zoom;
  rows = std::min<int>(rows, int(header.sample_ids.size()));
  Canvas canvas(4 * kGap + 3 * side, kGap + rows * (side + kGap), kPaper);
  for (int i = 0; i < rows; ++i)
    draw_row(canvas, kGap + i * (side + kGap), header, pixels.data() + size_t(i) * size_t(header.image_size) * size_t(header.image_size) * 3, i, zoom);
  return canvas.write(out);
}

}  // namespace

int visualize_main(int argc, char** argv) {
  CLI::App app{"Draws picture sheets"};
  std::string what, path, data, out;
  int64_t step = 0;
  int rows = 6;
  app.add_option("what", what, "masks")->required()->check(CLI::IsMember({"masks"}));
  app.add_option("run", path, "run folder, or a configuration (.yaml)")->required();
  app.add_option("--data", data, "data; default: the configuration's data_path");
  app.add_option("--out", out, "PNG file; default: pictures/masks.png of the run");
  app.add_option("--step", step, "which step's first tile");
  app.add_option("--rows", rows, "images")->check(CLI::Range(1, 64));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  const auto failed = [](const Error& error) { return std::cerr << "tessera visualize: " << error.message << "\n", exit_code_of(error); };
  std::string folder = path;
  if (!std::filesystem::exists(folder) && std::filesystem::exists("runs/" + path)) folder = "runs/" + path;
  const bool is_run = std::filesystem::is_directory(folder);
  auto config = load_config(is_run ? folder + "/config.yaml" : path, {});
  if (!config) return failed(config.error());
  if (data.empty()) data = config->operation.data_path;
  if (out.empty()) out = is_run ? folder + "/pictures/masks.png" : "masks.png";
  if (auto done = draw_masks(config->function, data, out, step, rows); !done) return failed(done.error());
  std::cout << out << "\n";
  return 0;
}

}  // namespace tessera::evaluate
