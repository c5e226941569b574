#include "worker/trainer/report.h"

#include <algorithm>
#include <numeric>

#include "worker/collective/tree_sum.h"

namespace tessera::trainer {
namespace {

using Pieces = std::vector<std::vector<collective::Piece>>;

int64_t grey_of(const StepFacts& facts, const TileRange& range) {
  int64_t count = 0;
  for (TileIndex t = range.begin; t < range.end; ++t) count += facts.tiles[size_t(t)].grey_count;
  return count;
}

}  // namespace

Status share_reports(StepFacts& facts, collective::Mesh* mesh, const TileRange& mine) {
  if (!mesh) return {};
  const int tile_count = int(facts.tiles.size());
  const size_t world = size_t(mesh->world_size());
  std::vector<TileRange> ranges;
  for (size_t r = 0; r < world; ++r) ranges.push_back(*collective::tile_range(tile_count, int(world), Rank(r)));
  const auto swap = [&](const auto& piece_of) {
    Pieces out(world), in(world);
    for (size_t r = 0; r < world; ++r) {
      if (Rank(r) == mesh->rank()) continue;
      out[r].push_back(piece_of(mine)), in[r].push_back(piece_of(ranges[r]));
    }
    return mesh->transfer(std::move(out), std::move(in), 0);
  };
  TESSERA_TRY(swap([&](const TileRange& range) { return collective::Piece{facts.tiles.data() + range.begin, size_t(range.size()) * sizeof(TileReport)}; }));
  for (const TileReport& tile : facts.tiles)
    if (tile.grey_count < 0 || tile.grey_count > (1 << 20)) return fail(ErrorCode::kRebuildWorld, "[trainer] a peer reports " + std::to_string(tile.grey_count) + " grey samples in a tile");
  const int64_t total = grey_of(facts, {0, TileIndex(tile_count)});
  if (total == 0) return {};
  const std::vector<SampleId> ours = std::move(facts.grey_samples);
  facts.grey_samples.assign(size_t(total), 0);
  const auto place = [&](const TileRange& range) { return collective::Piece{facts.grey_samples.data() + grey_of(facts, {0, range.begin}), size_t(grey_of(facts, range)) * sizeof(SampleId)}; };
  std::copy(ours.begin(), ours.end(), static_cast<SampleId*>(place(mine).data));
  return swap(place);
}

proto::StepDone describe_step(const StepFacts& facts, const Generation& generation, const std::string& lineage, const optimizer::StepRates& rates, int64_t images) {
  proto::StepDone done;
  done.generation = generation;
  done.lineage = lineage;
  done.step = facts.step;
  for (const TileReport& tile : facts.tiles) {
    done.loss += tile.loss;
    done.batch_digest += tile.digest;
    done.effective_rank = std::max(done.effective_rank, tile.effective_rank);
  }
  done.loss /= double(facts.tiles.size());
  done.context_length = int32_t(facts.tiles.front().context_length);
  done.lr = rates.lr, done.weight_decay = rates.weight_decay, done.ema = rates.ema;
  done.gradient_norm = facts.summary.norm;
  done.skipped = !facts.summary.finite;
  done.gradient_digest = facts.gradient;
  done.state_digest = facts.state;
  done.images = images;
  done.grey_samples = facts.grey_samples;
  return done;
}

}  // namespace tessera::trainer
