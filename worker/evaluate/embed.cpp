#include "worker/evaluate/embed.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "worker/evaluate/labelled.h"
#include "worker/evaluate/npy.h"

namespace tessera::evaluate {
namespace {

namespace fs = std::filesystem;
using Labels = std::map<std::string, std::vector<double>>;

Status check_folder(const std::string& folder) {
  std::error_code error;
  if (fs::exists(folder, error) && (!fs::is_directory(folder, error) || !fs::is_empty(folder, error)))
    return fail(ErrorCode::kUsage, folder + " exists and is not an empty folder; name another with --out, or remove it");
  return make_folders(folder);
}

// Text files that grow with the rows.
class Rows {
 public:
  Rows(const EmbedOptions& o, std::vector<std::string> label_names, std::vector<std::string> class_names)
      : projector_(o.projector), label_names_(std::move(label_names)), class_names_(std::move(class_names)), ids_(o.out + "/ids.txt") {
    if (projector_ == Projector::kNone) return;
    vectors_.open(o.out + "/vectors.tsv");
    metadata_.open(o.out + "/metadata.tsv");
    if (label_names_.empty()) return;  // TensorBoard wants no header line for a single column
    metadata_ << "key";
    for (const std::string& name : label_names_) metadata_ << "\t" << name;
    metadata_ << "\n";
  }
  Status add(const Samples& some, const at::Tensor& features) {
    const float* values = features.const_data_ptr<float>();
    const int64_t d = features.numel() / features.size(0);
    for (size_t i = 0; i < some.ids.size(); ++i) {
      ids_ << some.keys[i] << "\n";
      for (const std::string& name : label_names_) {
        const auto found = some.labels.find(name);
        labels_[name].push_back(found == some.labels.end() ? std::nan("") : found->second[i]);
      }
      if (projector_ == Projector::kNone) continue;
      for (int64_t j = 0; j < d; ++j) vectors_ << values[int64_t(i) * d + j] << (j + 1 < d ? "\t" : "\n");
      metadata_ << some.keys[i];
      for (const std::string& name : label_names_) metadata_ << "\t" << label_text(name, labels_[name].back());
      metadata_ << "\n";
    }
    return check();
  }
  Status close() {
    ids_.close();
    if (projector_ != Projector::kNone) vectors_.close(), metadata_.close();
    return check();
  }
  const Labels& labels() const { return labels_; }

 private:
  std::string label_text(const std::string& name, double value) const {
    if (name == "class" && value >= 0 && value < double(class_names_.size()) && value == std::floor(value)) return class_names_[size_t(value)];
    return nlohmann::json(value).dump();
  }
  Status check() const {
    if (ids_ && vectors_ && metadata_) return {};
    return fail(ErrorCode::kIo, "cannot write ids.txt, vectors.tsv or metadata.tsv: no space left, or no permission");
  }

  Projector projector_;
  std::vector<std::string> label_names_, class_names_;
  std::ofstream ids_, vectors_, metadata_;
  Labels labels_;
};

// A label as the array that is written: whole numbers as int64.
struct LabelArray {
  std::string dtype = "<f8", safetensors_dtype = "F64";
  std::vector<int64_t> whole;
  const void* data = nullptr;
};
LabelArray label_array(const std::vector<double>& values) {
  LabelArray out;
  out.data = values.data();
  for (const double value : values) {
    if (!(value == std::floor(value)) || std::fabs(value) > 1e15) return out;
    out.whole.push_back(int64_t(value));
  }
  out.dtype = "<i8", out.safetensors_dtype = "I64", out.data = out.whole.data();
  return out;
}

Status write_labels(const std::string& folder, const std::vector<double>& values) {
  const LabelArray array = label_array(values);
  TESSERA_ASSIGN(NpyWriter file, NpyWriter::create(folder + "/labels.npy", array.dtype, {int64_t(values.size())}));
  TESSERA_TRY(file.append(array.data, int64_t(values.size()) * 8));
  return file.close();
}

// The same numbers from the NPY file that is mapped: nothing is held twice.
Result<int64_t> write_tensors(const std::string& folder, const Labels& labels, const std::map<std::string, std::string>& metadata) {
  TESSERA_ASSIGN(const NpyFile embeddings, NpyFile::open(folder + "/embeddings.npy"));
  std::vector<TensorView> tensors{{"embeddings", "F32", embeddings.shape(), embeddings.data(), embeddings.data_bytes()}};
  std::map<std::string, LabelArray> arrays;
  for (const auto& [name, values] : labels) {
    const LabelArray& array = arrays[name] = label_array(values);
    tensors.push_back({"labels." + name, array.safetensors_dtype, {int64_t(values.size())}, array.whole.empty() ? array.data : array.whole.data(), int64_t(values.size()) * 8});
  }
  TESSERA_ASSIGN(const WrittenFile written, write_safetensors(folder + "/embeddings.safetensors", tensors, metadata));
  return written.size_bytes;
}

}  // namespace

std::string pooling_name(Pooling pooling) { return pooling == Pooling::kLast4 ? "last4" : pooling == Pooling::kPatches ? "patches" : "mean"; }

Result<nlohmann::ordered_json> embed(const LoadedModel& model, const EmbedOptions& o) {
  const Millis start = monotonic_ms();
  if (o.projector != Projector::kNone && o.pooling == Pooling::kPatches) return fail(ErrorCode::kUsage, "--projector shows one vector an image: use --pool mean or last4");
  TESSERA_TRY(check_folder(o.out));
  TESSERA_ASSIGN(const auto source, SampleSource::open(o.data, o.threads));
  const auto& info = source->info();
  if (o.limit > info.sample_count) return fail(ErrorCode::kFixData, o.data + " has " + std::to_string(info.sample_count) + " samples, fewer than --limit " + std::to_string(o.limit));
  std::vector<SampleId> ids(size_t(o.limit > 0 ? o.limit : info.sample_count));
  std::iota(ids.begin(), ids.end(), 0);
  const FrozenEncoder encoder(model, o.encoder);
  const int64_t size = model.function.model.image_size, patches = encoder.grid(size) * encoder.grid(size), d = encoder.channels(o.pooling);
  std::vector<int64_t> shape{int64_t(ids.size()), d};
  if (o.pooling == Pooling::kPatches) shape.insert(shape.begin() + 1, patches);
  TESSERA_ASSIGN(NpyWriter file, NpyWriter::create(o.out + "/embeddings.npy", "<f4", shape));
  Rows rows(o, info.label_names, info.class_names);
  size_t done = 0;
  TESSERA_TRY(read_in_chunks(*source, ids, int(size), [&](const Samples& some) -> Status {
    const at::Tensor features = encoder.features(some.pixels, o.pooling).contiguous();
    TESSERA_TRY(check_finite(features, model.checkpoint));
    TESSERA_TRY(file.append(features.const_data_ptr<float>(), features.numel() * 4));
    log_info("{} of {} images", done += some.ids.size(), ids.size());
    return rows.add(some, features);
  }));
  TESSERA_TRY(file.close());
  TESSERA_TRY(rows.close());
  const std::string main_label = rows.labels().contains("class") || rows.labels().empty() ? "class" : rows.labels().begin()->first;
  if (!rows.labels().empty()) TESSERA_TRY(write_labels(o.out, rows.labels().at(main_label)));
  const std::string digest = to_hex(model.state.digest()), encoder_name = o.encoder == EncoderKind::kTarget ? "target" : "context";
  TESSERA_ASSIGN(const int64_t tensor_bytes, write_tensors(o.out, rows.labels(), {{"pool", pooling_name(o.pooling)}, {"encoder", encoder_name}, {"checkpoint_digest", digest}}));
  nlohmann::ordered_json out{{"schema", 1}, {"out", o.out}, {"samples", ids.size()}, {"shape", shape}, {"pool", pooling_name(o.pooling)}, {"encoder", encoder_name},
                             {"labels", info.label_names}, {"bytes", tensor_bytes}, {"model", model.checkpoint}, {"step", model.state.step}, {"checkpoint_digest", digest},
                             {"data", o.data}, {"manifest_digest", to_hex(info.manifest_digest)}, {"seconds", double(monotonic_ms() - start) / 1000.0}};
  if (!rows.labels().empty()) out["main_label"] = main_label;
  TESSERA_TRY(write_file_atomic(o.out + "/embeddings.json", out.dump(1) + "\n"));
  return out;
}

}  // namespace tessera::evaluate
