// `tessera visualize predictor` and `visualize train-decoder`: what the predictor imagines under a masked block, as pictures.
//
// A block's condition is the predictor's output averaged over the block's patches (I-JEPA, section 8), its height and width in
// shares of the picture, which the mask gives away anyway; where the block lies is left to the predictor. The picture is the
// block's rectangle, scaled to kDecoderSide. Images that a hash of seed and sample holds out (a fifth) are never trained on, and
// only they are drawn.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "worker/evaluate/model_source.h"
#include "worker/evaluate/picture_decoder.h"
#include "worker/evaluate/tiles.h"

namespace tessera::evaluate {

struct ImaginedOptions {
  std::string data;
  int64_t pairs = 12000;   // blocks that the decoder learns from, at most
  DecoderTraining training;
  int64_t rows = 6, draws = 5;  // of the sheet
  int threads = 2;
};

// A masked block of a held-out image, with what is needed to draw it.
struct ImaginedBlock {
  at::Tensor image_hwc;         // [S, S, 3] uint8
  std::vector<bool> seen;       // by patch: the context encoder saw it
  BlockBox box;
  at::Tensor condition_e, picture_hwc;
};

// Blocks of the run's own tiles: every target of every image of a part. Errors: those of the loader; kFixData: no predictor.
enum class Part { kTrain, kHeldOut };
Result<std::vector<ImaginedBlock>> read_blocks(const LoadedModel& model, const ImaginedOptions& options, Part part, int64_t wanted);

// Trains a decoder for the model's predictor and writes it. Returns settings and the final loss.
// Errors: those of read_blocks; kFixData: fewer than 100 blocks; kIo.
Result<nlohmann::ordered_json> train_decoder(const LoadedModel& model, const ImaginedOptions& options, const std::string& out);

// Rows of image, context, block, and draws in the block's place. Also measures what the condition says, in shares of full
// brightness over held-out blocks: error (mean draw to truth), other_error (draws for another block of the same size list to this truth), deviation
// (between draws of one block). Errors: those of read_blocks; kFixData: fewer held-out images than rows; kIo.
Result<nlohmann::ordered_json> draw_imagined(const LoadedModel& model, const PictureDecoder& decoder, const ImaginedOptions& options, const std::string& out);

// state digest, as the decoder's file names it.
std::string digest_of(const LoadedModel& model);

}  // namespace tessera::evaluate
