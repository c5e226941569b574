#include "worker/evaluate/neighbours.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>
#include <unistd.h>

#include "common/file.h"
#include "common/log.h"
#include "worker/evaluate/embed.h"
#include "worker/evaluate/knn.h"
#include "worker/evaluate/npy.h"
#include "worker/evaluate/png_sheet.h"

namespace tessera::evaluate {
namespace {

namespace fs = std::filesystem;

// A folder of our own that goes with the object.
class TemporaryFolder {
 public:
  static Result<TemporaryFolder> make() {
    std::string pattern = (fs::temp_directory_path() / "tessera-query-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) return fail(ErrorCode::kIo, "cannot make a folder in " + fs::temp_directory_path().string());
    return TemporaryFolder(pattern);
  }
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  ~TemporaryFolder() {
    std::error_code error;
    if (!path_.empty()) fs::remove_all(path_, error);
  }
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// One image file through a loader of its own, decoded and resized as every other sample.
Result<Samples> read_image(const std::string& path, int size) {
  TESSERA_ASSIGN(const TemporaryFolder folder, TemporaryFolder::make());
  std::error_code error;
  fs::copy_file(path, fs::path(folder.path()) / fs::path(path).filename(), error);
  if (error) return fail(ErrorCode::kFixData, "cannot read " + path + ": " + error.message());
  auto source = SampleSource::open(folder.path(), 1);
  if (!source) return fail(ErrorCode::kFixData, path + " is no image that the loader reads: " + source.error().message);
  return (*source)->read({0}, size);
}

struct Bank {
  at::Tensor features_nd;
  std::vector<std::string> keys;
  std::optional<NpyFile> file;  // what features_nd points into
};

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    out.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

Result<Bank> read_embeddings(const LoadedModel& model, const std::string& folder, const proto::DatasetInfo& info, EncoderKind* encoder, Pooling* pooling) {
  TESSERA_ASSIGN(const std::string text, read_file(folder + "/embeddings.json"));
  const auto doc = nlohmann::json::parse(text, nullptr, false);
  if (!doc.is_object()) return fail(ErrorCode::kFixData, folder + "/embeddings.json is damaged; run tessera embed again");
  if (doc.value("checkpoint_digest", "") != to_hex(model.state.digest()))
    return fail(ErrorCode::kFixData, folder + " holds embeddings of another model (" + doc.value("model", "?") + "); run tessera embed for this one");
  if (doc.value("manifest_digest", "") != to_hex(info.manifest_digest)) return fail(ErrorCode::kFixData, folder + " holds embeddings of other data (" + doc.value("data", "?") + ")");
  if (doc.value("pool", "") == "patches") return fail(ErrorCode::kUsage, folder + " holds patches; neighbours need one vector an image (--pool mean or last4)");
  *pooling = doc.value("pool", "") == "last4" ? Pooling::kLast4 : Pooling::kMean;
  TESSERA_ASSIGN(*encoder, encoder_kind(doc.value("encoder", "")));
  Bank bank;
  TESSERA_ASSIGN(bank.file, NpyFile::open(folder + "/embeddings.npy"));
  if (bank.file->dtype() != "<f4" || bank.file->shape().size() != 2) return fail(ErrorCode::kFixData, folder + "/embeddings.npy is no matrix of float32");
  bank.features_nd = at::from_blob(const_cast<void*>(bank.file->data()), bank.file->shape(), at::kFloat);
  TESSERA_ASSIGN(const std::string ids, read_file(folder + "/ids.txt"));
  bank.keys = lines_of(ids);
  if (int64_t(bank.keys.size()) != bank.features_nd.size(0)) return fail(ErrorCode::kFixData, folder + "/ids.txt has " + std::to_string(bank.keys.size()) + " lines for " + std::to_string(bank.features_nd.size(0)) + " rows");
  return bank;
}

Result<Bank> compute_bank(const FrozenEncoder& encoder, SampleSource& source, int64_t limit, int size) {
  const int64_t all = source.info().sample_count, count = limit > 0 ? limit : all;
  if (limit > all) return fail(ErrorCode::kFixData, "the data has " + std::to_string(all) + " samples, fewer than --limit " + std::to_string(limit));
  std::vector<SampleId> ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  Bank bank;
  std::vector<at::Tensor> parts;
  log_info("features of {} images", ids.size());
  TESSERA_TRY(read_in_chunks(source, ids, size, [&](const Samples& some) -> Status {
    parts.push_back(encoder.features(some.pixels, Pooling::kMean));
    bank.keys.insert(bank.keys.end(), some.keys.begin(), some.keys.end());
    return {};
  }));
  bank.features_nd = at::cat(parts);
  return bank;
}

// The query, framed, and its neighbours in rows of at most eight.
Status draw_sheet(const at::Tensor& query, const at::Tensor& pixels, const std::string& path) {
  constexpr Color kPaper{250, 249, 246}, kQuery{222, 82, 60};
  constexpr int kGap = 8, kColumns = 8;
  const int size = int(query.size(1)), zoom = std::max(1, 128 / size), side = size * zoom, count = int(pixels.size(0));
  const int columns = std::min(kColumns, count), rows = (count + kColumns - 1) / kColumns;
  Canvas canvas(kGap + (columns + 1) * (side + kGap) + kGap, kGap + rows * (side + kGap), kPaper);
  const at::Tensor first = query.contiguous(), others = pixels.contiguous();
  canvas.frame(kGap - 3, kGap - 3, side + 6, side + 6, kQuery, 3);
  canvas.draw_image(kGap, kGap, first.const_data_ptr<uint8_t>(), size, zoom);
  for (int i = 0; i < count; ++i)
    canvas.draw_image(2 * kGap + (1 + i % kColumns) * (side + kGap), kGap + i / kColumns * (side + kGap), others.const_data_ptr<uint8_t>() + int64_t{i} * size * size * 3, size, zoom);
  return canvas.write(path);
}

}  // namespace

Result<nlohmann::ordered_json> find_neighbours(const LoadedModel& model, const NeighbourOptions& o) {
  const int size = int(model.function.model.image_size);
  TESSERA_ASSIGN(const auto source, SampleSource::open(o.data, o.threads));
  EncoderKind kind = o.encoder;
  Pooling pooling = Pooling::kMean;
  Bank bank;
  if (!o.embeddings.empty()) {
    TESSERA_ASSIGN(bank, read_embeddings(model, o.embeddings, source->info(), &kind, &pooling));
  }
  const FrozenEncoder encoder(model, kind);
  if (o.embeddings.empty()) {
    TESSERA_ASSIGN(bank, compute_bank(encoder, *source, o.limit, size));
  }
  TESSERA_TRY(check_finite(bank.features_nd, model.checkpoint));
  const bool is_file = fs::is_regular_file(o.image);
  const int64_t own = is_file ? -1 : std::find(bank.keys.begin(), bank.keys.end(), o.image) - bank.keys.begin();
  if (own == int64_t(bank.keys.size())) return fail(ErrorCode::kFixData, o.image + " is neither an image file nor the key of one of the " + std::to_string(bank.keys.size()) + " samples of " + o.data);
  const int64_t others = int64_t(bank.keys.size()) - (own >= 0 ? 1 : 0);
  if (others < o.k) return fail(ErrorCode::kFixData, o.data + " gives " + std::to_string(others) + " images to choose from, fewer than --k " + std::to_string(o.k));
  auto query = is_file ? read_image(o.image, size) : source->read({own}, size);
  if (!query) return tl::unexpected(query.error());
  const Nearest found = nearest(encoder.features(query->pixels, pooling), bank.features_nd, o.k + (own >= 0 ? 1 : 0));
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::vector<SampleId> ids;
  for (size_t i = 0; i < found.index_qk.size() && int64_t(ids.size()) < o.k; ++i) {
    if (found.index_qk[i] == own) continue;
    ids.push_back(found.index_qk[i]);
    list.push_back({{"key", bank.keys[size_t(ids.back())]}, {"sample", ids.back()}, {"similarity", found.similarity_qk[i]}});
  }
  TESSERA_ASSIGN(const Samples pictures, source->read(ids, size));
  TESSERA_TRY(draw_sheet(query->pixels, pictures.pixels, o.out));
  return nlohmann::ordered_json{{"schema", 1}, {"query", o.image}, {"neighbours", list}, {"out", o.out},
                                {"settings", {{"data", o.data}, {"searched", bank.keys.size()}, {"pool", pooling_name(pooling)}, {"encoder", kind == EncoderKind::kTarget ? "target" : "context"}, {"k", o.k}, {"model", model.checkpoint},
                                              {"checkpoint_digest", to_hex(model.state.digest())}}}};
}

}  // namespace tessera::evaluate
