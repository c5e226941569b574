#include <ATen/Parallel.h>
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "common/config.h"
#include "common/file.h"
#include "worker/evaluate/commands.h"
#include "worker/evaluate/patch_pictures.h"
#include "worker/evaluate/png_sheet.h"
#include "worker/evaluate/tiles.h"

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
  TESSERA_ASSIGN(TileReader reader, TileReader::open(function, data, 1));
  TESSERA_ASSIGN(const SeenTile seen, reader.read(step * function.batch.tiles));
  const proto::TileHeader& header = seen.header;
  const int zoom = std::max(1, 160 / header.image_size), side = header.image_size * zoom;
  rows = std::min<int>(rows, int(header.sample_ids.size()));
  Canvas canvas(4 * kGap + 3 * side, kGap + rows * (side + kGap), kPaper);
  for (int i = 0; i < rows; ++i)
    draw_row(canvas, kGap + i * (side + kGap), header, seen.tile.pixels.const_data_ptr<uint8_t>() + size_t(i) * size_t(header.image_size) * size_t(header.image_size) * 3, i, zoom);
  return canvas.write(out);
}

struct Arguments {
  std::string what, path, data, out, encoder = "target";
  int64_t step = 0, rows = 6, heads = 0;
  int threads = 2;
};

// masks: from a run's or a file's configuration alone.
Result<std::string> masks(Arguments a) {
  std::string folder = a.path;
  if (!std::filesystem::exists(folder) && std::filesystem::exists("runs/" + a.path)) folder = "runs/" + a.path;
  const bool is_run = std::filesystem::is_directory(folder);
  TESSERA_ASSIGN(const Config config, load_config(is_run ? folder + "/config.yaml" : a.path, {}));
  if (a.data.empty()) a.data = config.operation.data_path;
  if (a.out.empty()) a.out = is_run ? folder + "/pictures/masks.png" : "masks.png";
  TESSERA_TRY(draw_masks(config.function, a.data, a.out, a.step, int(a.rows)));
  return a.out;
}

// pca, attention: from a model's patches.
Result<std::string> patches(Arguments a) {
  if (a.data.empty()) return fail(ErrorCode::kUsage, a.what + " needs --data PATH");
  at::set_num_threads(a.threads);
  TESSERA_ASSIGN(const LoadedModel model, load_model(a.path, a.heads));
  if (a.out.empty()) a.out = model.run_dir.empty() ? a.what + ".png" : model.run_dir + "/pictures/" + a.what + "-step-" + std::to_string(model.state.step) + ".png";
  PatchPictureOptions options{a.data, a.out, EncoderKind::kTarget, a.rows, a.threads};
  TESSERA_ASSIGN(options.encoder, encoder_kind(a.encoder));
  TESSERA_TRY(a.what == "pca" ? draw_pca(model, options) : draw_attention(model, options));
  return a.out;
}

}  // namespace

int visualize_main(int argc, char** argv) {
  if (const std::string word = argc > 1 ? argv[1] : ""; word == "predictor" || word == "train-decoder") return predictor_main(argc - 1, argv + 1);
  CLI::App app{"Draws picture sheets"};
  app.name("tessera visualize");
  Arguments a;
  bool json = false;
  app.add_option("what", a.what, "masks, pca (patch features as colours), attention (of the last block), predictor or train-decoder (each with its own --help)")->required()->check(CLI::IsMember({"masks", "pca", "attention"}));
  app.add_option("model", a.path, "masks: run folder, or a configuration (.yaml); else a run, checkpoint, Hugging Face folder or published .pth.tar")->required();
  app.add_option("--data", a.data, "data; default for masks: the configuration's data_path");
  app.add_option("--out", a.out, "PNG file; default: pictures/ of the run");
  app.add_option("--step", a.step, "masks: which step's first tile");
  app.add_option("--rows", a.rows, "images")->check(CLI::Range(1, 64));
  app.add_option("--encoder", a.encoder, "target or context")->check(CLI::IsMember({"target", "context"}));
  app.add_option("--threads", a.threads, "compute threads")->check(CLI::Range(1, 1024));
  app.add_option("--heads", a.heads, "attention heads of a published file of sizes that no variant has")->check(CLI::Range(1, 256));
  app.add_flag("--json", json, "one JSON object on the last line of stdout");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : exit_codes::kUsage;
  }
  const auto drawn = a.what == "masks" ? masks(a) : patches(a);
  if (!drawn) {
    std::cerr << "tessera visualize: " << drawn.error().message << "\n";
    return exit_code_of(drawn.error());
  }
  if (json) std::cout << nlohmann::ordered_json{{"schema", 1}, {"out", *drawn}}.dump() << std::endl;
  else std::cout << *drawn << "\n";
  return 0;
}

}  // namespace tessera::evaluate
