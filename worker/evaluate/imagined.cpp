#include "worker/evaluate/imagined.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <algorithm>
#include <set>

#include "common/clock.h"
#include "common/log.h"
#include "common/philox.h"
#include "worker/evaluate/png_sheet.h"

namespace tessera::evaluate {
namespace {

constexpr Color kPaper{250, 249, 246}, kHidden{214, 212, 206}, kTruth{44, 123, 182}, kDrawn{90, 155, 87};
constexpr int kGap = 8, kShown = 128;
constexpr uint32_t kPartStream = 0xFFFFFFFBu;
constexpr int64_t kMeasured = 24, kMeasuredDraws = 4, kFewestPairs = 100;

bool held_out(SampleId id) { return PhiloxStream(0, Purpose::kDecoder, uint64_t(id), kPartStream).next_below(5) == 0; }

// picture_hwc uint8 at another size, averaged when it gets smaller.
at::Tensor scaled(const at::Tensor& picture_hwc, int64_t height, int64_t width) {
  const at::Tensor chw = picture_hwc.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat).contiguous();
  return at::_upsample_bilinear2d_aa(chw, {height, width}, false).squeeze(0).permute({1, 2, 0}).add(0.5).clamp(0, 255).to(at::kByte).contiguous();
}

// What the predictor says about block (t, i), averaged, and the block's size.
at::Tensor condition_of(const model::TileOutputs& said, const SeenTile& seen, int64_t target, int64_t image, const BlockBox& box) {
  const int64_t contexts = int64_t(seen.tile.contexts.size()), images = seen.tile.pixels.size(0), grid = seen.header.grid;
  const at::Tensor mean_d = said.prediction_bkd.select(0, target * contexts * images + image).mean(0);
  at::Tensor size = at::empty({2}, at::kFloat);
  size[0] = double(box.height) / double(grid), size[1] = double(box.width) / double(grid);
  return at::cat({mean_d, size});
}

ImaginedBlock block_of(const model::TileOutputs& said, const SeenTile& seen, int64_t target, int64_t image) {
  const proto::TileHeader& h = seen.header;
  const int64_t patch = h.image_size / h.grid;
  ImaginedBlock out;
  out.box = block_box(h, target, image);
  out.image_hwc = seen.tile.pixels.select(0, image).clone();
  out.seen.assign(size_t(h.grid) * size_t(h.grid), false);
  for (int64_t i = 0; i < h.context_length; ++i) out.seen[h.contexts[0][size_t(image * h.context_length + i)]] = true;
  out.condition_e = condition_of(said, seen, target, image, out.box);
  const at::Tensor crop = out.image_hwc.narrow(0, out.box.top * patch, out.box.height * patch).narrow(1, out.box.left * patch, out.box.width * patch);
  out.picture_hwc = scaled(crop, kDecoderSide, kDecoderSide);
  return out;
}

DecoderPairs pairs_of(const std::vector<ImaginedBlock>& blocks) {
  std::vector<at::Tensor> conditions, pictures;
  for (const ImaginedBlock& block : blocks) conditions.push_back(block.condition_e), pictures.push_back(block.picture_hwc);
  return {at::stack(conditions), at::stack(pictures)};
}

struct Measured {
  double error = 0, other_error = 0, deviation = 0;
};

// Mean over blocks; the other block's draws are those of the next one in the list.
Measured measure(const PictureDecoder& decoder, const std::vector<ImaginedBlock>& blocks, int64_t seed) {
  const DecoderPairs pairs = pairs_of(blocks);
  std::vector<at::Tensor> draws;
  for (int64_t d = 0; d < kMeasuredDraws; ++d) draws.push_back(decoder.draw(pairs.condition_be, seed, 1000 + d).to(at::kFloat).div(255));
  const at::Tensor all = at::stack(draws), mean = all.mean(0), truth = pairs.pictures_bhwc.to(at::kFloat).div(255);
  const auto error = [&](const at::Tensor& guess) { return (guess - truth).square().mean().sqrt().item<double>(); };
  return {error(mean), error(at::roll(mean, {1}, {0})), (all - mean).square().mean().mul(double(kMeasuredDraws) / double(kMeasuredDraws - 1)).sqrt().item<double>()};
}

class Sheet {
 public:
  Sheet(int size, int64_t rows, int64_t draws)
      : size_(size), zoom_(std::max(1, kShown / size)), canvas_(kGap + int(draws + 3) * (side() + kGap), kGap + int(rows) * (side() + kGap), kPaper) {}
  int side() const { return size_ * zoom_; }

  void draw_row(int row, const ImaginedBlock& block, const std::vector<at::Tensor>& draws_hwc) {
    const int top = kGap + row * (side() + kGap);
    image(block, 0, top);
    context(block, 1, top);
    image(block, 2, top);
    canvas_.shade(left(2), top, side(), side(), kPaper, 0.6);
    paste(block, 2, top, block.image_hwc.narrow(0, block.box.top * patch(block), block.box.height * patch(block)).narrow(1, block.box.left * patch(block), block.box.width * patch(block)), kTruth);
    for (size_t d = 0; d < draws_hwc.size(); ++d) {
      context(block, int(3 + d), top);
      paste(block, int(3 + d), top, scaled(draws_hwc[d], block.box.height * patch(block), block.box.width * patch(block)), kDrawn);
    }
  }
  Status write(const std::string& path) const { return canvas_.write(path); }

 private:
  int left(int column) const { return kGap + column * (side() + kGap); }
  int64_t grid(const ImaginedBlock& block) const { return int64_t(std::lround(std::sqrt(double(block.seen.size())))); }
  int64_t patch(const ImaginedBlock& block) const { return size_ / grid(block); }
  void image(const ImaginedBlock& block, int column, int top) { canvas_.draw_image(left(column), top, block.image_hwc.const_data_ptr<uint8_t>(), size_, zoom_); }
  void context(const ImaginedBlock& block, int column, int top) {
    image(block, column, top);
    const int g = int(grid(block)), p = int(patch(block)) * zoom_;
    for (int i = 0; i < g * g; ++i)
      if (!block.seen[size_t(i)]) canvas_.shade(left(column) + i % g * p, top + i / g * p, p, p, kHidden, 1);
  }
  void paste(const ImaginedBlock& block, int column, int top, const at::Tensor& picture_hwc, Color color) {
    const at::Tensor picture = picture_hwc.contiguous();
    const int h = int(picture.size(0)), w = int(picture.size(1)), p = int(patch(block)), x0 = left(column) + int(block.box.left) * p * zoom_, y0 = top + int(block.box.top) * p * zoom_;
    const uint8_t* rgb = picture.const_data_ptr<uint8_t>();
    for (int y = 0; y < h * zoom_; ++y)
      for (int x = 0; x < w * zoom_; ++x) {
        const uint8_t* c = rgb + (y / zoom_ * w + x / zoom_) * 3;
        canvas_.set(x0 + x, y0 + y, {c[0], c[1], c[2]});
      }
    canvas_.frame(x0 - 1, y0 - 1, w * zoom_ + 2, h * zoom_ + 2, color, 2);
  }

  int size_, zoom_;
  Canvas canvas_;
};

}  // namespace

std::string digest_of(const LoadedModel& model) { return to_hex(model.state.digest()); }

Result<std::vector<ImaginedBlock>> read_blocks(const LoadedModel& model, const ImaginedOptions& o, Part part, int64_t wanted) {
  if (model.kind == import::ModelKind::kHuggingFace)
    return fail(ErrorCode::kFixData, model.checkpoint + " holds an encoder and no predictor: there is nothing that imagines; take a run, a checkpoint or a published .pth.tar");
  TESSERA_ASSIGN(TileReader reader, TileReader::open(model.function, o.data, o.threads));
  TESSERA_ASSIGN(const auto engine, model::Engine::make(model.function, "cpu"));
  std::vector<ImaginedBlock> out;
  std::set<SampleId> drawn;  // one block an image when held-out ones are shown
  const int64_t most_tiles = 2 + 8 * wanted / std::max<int64_t>(1, model.function.batch.tile_size);
  for (int64_t index = 0; index < most_tiles && int64_t(out.size()) < wanted; ++index) {
    TESSERA_ASSIGN(const SeenTile seen, reader.read(index));
    const model::TileOutputs said = engine->outputs(model.state, seen.tile);
    if (!at::isfinite(said.prediction_bkd).all().item<bool>()) return fail(ErrorCode::kFixData, "the predictions of " + model.checkpoint + " are not all finite numbers: the weights have diverged");
    const int64_t targets = int64_t(seen.header.targets.size());
    for (size_t i = 0; i < seen.header.sample_ids.size(); ++i) {
      const SampleId id = seen.header.sample_ids[i];
      if (held_out(id) != (part == Part::kHeldOut) || (part == Part::kHeldOut && !drawn.insert(id).second)) continue;
      const int64_t only = part == Part::kHeldOut ? int64_t(drawn.size()) % targets : -1;
      for (int64_t t = 0; t < targets && int64_t(out.size()) < wanted; ++t)
        if (only < 0 || t == only) out.push_back(block_of(said, seen, t, int64_t(i)));
    }
  }
  return out;
}

Result<nlohmann::ordered_json> train_decoder(const LoadedModel& model, const ImaginedOptions& o, const std::string& path) {
  const Millis start = monotonic_ms();
  TESSERA_ASSIGN(const std::vector<ImaginedBlock> blocks, read_blocks(model, o, Part::kTrain, o.pairs));
  if (int64_t(blocks.size()) < kFewestPairs)
    return fail(ErrorCode::kFixData, o.data + " gives " + std::to_string(blocks.size()) + " masked blocks to learn from, fewer than " + std::to_string(kFewestPairs) + "; more images or a larger --pairs are needed");
  log_info("{} blocks read in {:.0f} s; training the decoder for {} steps", blocks.size(), double(monotonic_ms() - start) / 1000, o.training.steps);
  const Millis training = monotonic_ms();
  const PictureDecoder decoder = PictureDecoder::train(pairs_of(blocks), o.training, [&](int64_t step, double loss) {
    const double seconds = double(monotonic_ms() - training) / 1000;
    log_info("decoder step {}/{}  loss {:.4f}  about {:.0f} s more", step, o.training.steps, loss, seconds / double(step) * double(o.training.steps - step));
  });
  const std::string steps = std::to_string(o.training.steps);
  TESSERA_TRY(decoder.save(path, digest_of(model), {{"model_step", std::to_string(model.state.step)}, {"steps", steps}, {"seed", std::to_string(o.training.seed)}, {"data", o.data}}));
  return nlohmann::ordered_json{{"schema", 1}, {"decoder", path}, {"encoder_digest", digest_of(model)}, {"loss", decoder.final_loss()}, {"blocks", blocks.size()}, {"steps", o.training.steps},
                                {"seconds", double(monotonic_ms() - start) / 1000}};
}

Result<nlohmann::ordered_json> draw_imagined(const LoadedModel& model, const PictureDecoder& decoder, const ImaginedOptions& o, const std::string& out) {
  TESSERA_ASSIGN(const std::vector<ImaginedBlock> blocks, read_blocks(model, o, Part::kHeldOut, std::max(o.rows, kMeasured)));
  if (int64_t(blocks.size()) < std::max<int64_t>(2, o.rows))
    return fail(ErrorCode::kFixData, o.data + " has " + std::to_string(blocks.size()) + " held-out images, fewer than --rows " + std::to_string(o.rows) + " (a fifth of the images is held out)");
  if (blocks[0].condition_e.numel() != decoder.condition_size()) return fail(ErrorCode::kFixData, "the decoder wants other conditions than this model gives: it is damaged");
  const std::vector<ImaginedBlock> shown(blocks.begin(), blocks.begin() + o.rows);
  const DecoderPairs pairs = pairs_of(shown);
  std::vector<at::Tensor> draws;
  for (int64_t d = 0; d < o.draws; ++d) draws.push_back(decoder.draw(pairs.condition_be, o.training.seed, d));
  Sheet sheet(int(shown[0].image_hwc.size(0)), o.rows, o.draws);
  for (int64_t row = 0; row < o.rows; ++row) {
    std::vector<at::Tensor> own;
    for (const at::Tensor& one : draws) own.push_back(one.select(0, row).contiguous());
    sheet.draw_row(int(row), shown[size_t(row)], own);
  }
  TESSERA_TRY(sheet.write(out));
  const Measured m = measure(decoder, blocks, o.training.seed);
  return nlohmann::ordered_json{{"schema", 1}, {"out", out}, {"encoder_digest", digest_of(model)}, {"blocks", blocks.size()}, {"draws", o.draws}, {"error", m.error}, {"other_error", m.other_error},
                                {"deviation", m.deviation}};
}

}  // namespace tessera::evaluate
