#include "worker/checkpoint/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "common/crash_point.h"
#include "common/file.h"
#include "common/sealed_json.h"
#include "worker/model/backend.h"

namespace tessera::checkpoint {
namespace {

using nlohmann::json;

TensorView view_of(const std::string& name, const std::vector<int64_t>& shape, const float* data) {
  const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  return {name, "F32", shape, data, count * 4};
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

json scalars_json(const Scalars& s) {
  return {{"schema", 1},
          {"step", s.step},
          {"adam_steps", s.adam_steps},
          {"lineage", s.lineage},
          {"function_id", s.function_id},
          {"function", s.function_yaml},
          {"numerics_class", s.numerics_class},
          {"state_digest", to_hex(s.state_digest)},
          {"sample_position", s.sample_position}};
}

json tensors_json(const std::vector<TensorView>& tensors, const std::string& file) {
  json list = json::array();
  for (const auto& t : tensors) list.push_back({{"name", t.name}, {"dtype", t.dtype}, {"shape", t.shape}, {"file", file}});
  return list;
}

}  // namespace

std::vector<TensorView> state_tensors(const model::State& s) {
  std::vector<TensorView> out;
  const auto data = [](const model::FlatBuffers& role, const model::TensorPlace& place) {
    return role[size_t(place.bucket)].const_data_ptr<float>() + place.offset;
  };
  for (const auto& place : s.layout.tensors) {
    out.push_back(view_of(place.name, place.shape, data(s.weights, place)));
    if (place.network == model::Network::kContextEncoder) out.push_back(view_of(place.target_name(), place.shape, data(s.target, place)));
    out.push_back(view_of("optimizer.exp_avg." + place.name, place.shape, data(s.exp_avg, place)));
    out.push_back(view_of("optimizer.exp_avg_sq." + place.name, place.shape, data(s.exp_avg_sq, place)));
  }
  const auto table = [&](const std::string& name, const at::Tensor& t) {
    out.push_back(view_of(name, {1, t.size(0), t.size(1)}, t.const_data_ptr<float>()));
  };
  table("context_encoder.pos_embed", s.context_position);
  table("target_encoder.pos_embed", s.target_position);
  table("predictor.predictor_pos_embed", s.predictor_position);
  if (s.exponents.defined()) out.push_back(view_of("reduction.exponents", {s.exponents.numel()}, s.exponents.const_data_ptr<float>()));
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

std::vector<std::vector<size_t>> deal(const std::vector<TensorView>& tensors, int world_size) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return tensors[a].size_bytes > tensors[b].size_bytes; });
  std::vector<std::vector<size_t>> out{size_t(world_size)};
  std::vector<int64_t> load(size_t(world_size), 0);
  for (const size_t i : order) {
    const size_t writer = size_t(std::min_element(load.begin(), load.end()) - load.begin());
    out[writer].push_back(i);
    load[writer] += tensors[i].size_bytes;
  }
  for (auto& list : out) std::sort(list.begin(), list.end());
  return out;
}

Snapshot take_snapshot(const model::State& state, const Scalars& scalars, Generation generation, Rank rank, int world_size) {
  Snapshot snapshot{scalars, generation, rank, world_size, {}, {}};
  const auto all = state_tensors(state);
  const auto mine = deal(all, world_size)[size_t(rank)];
  int64_t floats = 0;
  for (const size_t i : mine) floats += all[i].size_bytes / 4;
  snapshot.bytes.resize(size_t(floats));
  float* at = snapshot.bytes.data();
  for (const size_t i : mine) {
    model::copy_to_host(at, all[i].data, all[i].size_bytes, model::on_device(state.weights));
    TensorView view = all[i];
    view.data = at;
    snapshot.tensors.push_back(view);
    at += all[i].size_bytes / 4;
  }
  return snapshot;
}

std::string attempt_name(Generation generation, Step step) {
  return ".attempt-" + std::to_string(generation.term) + "-" + std::to_string(generation.number) + "-" + std::to_string(step);
}

std::string file_name(Rank rank, int world_size) {
  char text[64];
  std::snprintf(text, sizeof text, "state-%05d-of-%05d.safetensors", rank, world_size);
  return text;
}

Result<proto::CheckpointFile> write_snapshot(const Snapshot& s, const std::string& root) {
  proto::CheckpointFile message{s.generation, s.scalars.step, attempt_name(s.generation, s.scalars.step), s.rank, s.world_size, file_name(s.rank, s.world_size), 0, {}, ""};
  const std::string folder = root + "/" + message.attempt;
  TESSERA_TRY(make_folders(folder));
  crash_point("checkpoint.share_begun");
  TESSERA_ASSIGN(const WrittenFile written, write_safetensors(folder + "/" + message.file, s.tensors, {{"format", "pt"}}));
  TESSERA_TRY(fsync_folder(folder));
  crash_point("checkpoint.share_written");
  message.size_bytes = written.size_bytes;
  message.hash = written.hash;
  json part{{"tensors", tensors_json(s.tensors, message.file)}};
  if (s.rank == 0) part["scalars"] = scalars_json(s.scalars);
  message.manifest_part = part.dump();
  return message;
}

Result<Manifest> read_manifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  TESSERA_ASSIGN(const std::string text, read_file(path));
  const auto bad = [&](const std::string& what) { return fail(ErrorCode::kFixData, path + ": " + what); };
  TESSERA_ASSIGN(const json doc, open_sealed_json(text, path));
  if (doc.value("schema", 0) != 1) return bad("schema " + std::to_string(doc.value("schema", 0)) + ", this version reads 1");
  try {
    Manifest m;
    m.folder = folder;
    m.scalars.step = doc.at("step").get<int64_t>();
    m.scalars.adam_steps = doc.at("adam_steps").get<int64_t>();
    m.scalars.lineage = doc.at("lineage").get<std::string>();
    m.scalars.function_id = doc.at("function_id").get<std::string>();
    m.scalars.function_yaml = doc.at("function").get<std::string>();
    m.scalars.numerics_class = doc.at("numerics_class").get<std::string>();
    m.scalars.sample_position = doc.value("sample_position", int64_t{0});
    TESSERA_ASSIGN(m.scalars.state_digest, state_digest_from_hex(doc.at("state_digest").get<std::string>()));
    for (const auto& file : doc.at("files")) {
      Manifest::File f;
      f.name = file.at("file").get<std::string>();
      f.size_bytes = file.at("size_bytes").get<int64_t>();
      TESSERA_ASSIGN(f.hash, hash_from_hex(file.at("hash").get<std::string>()));
      if (f.name.find('/') != std::string::npos) return bad("file name " + f.name + " leaves the folder");
      m.files.push_back(f);
    }
    return m;
  } catch (const json::exception& e) {
    return bad(std::string("a field is missing or of the wrong kind: ") + e.what());
  }
}

namespace {

// A file whose size and hash are the manifest's.
Result<SafetensorsFile> open_verified(const std::string& path, const Manifest::File& expected) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return fail(ErrorCode::kFixData, path + ": is missing or unreadable (" + error.message() + "); the checkpoint cannot be used");
  if (int64_t(size) != expected.size_bytes)
    return fail(ErrorCode::kFixData, path + ": has " + std::to_string(size) + " bytes, the manifest says " + std::to_string(expected.size_bytes) + ": truncated or overwritten");
  TESSERA_ASSIGN(const Hash128 hash, hash_file(path));
  if (hash != expected.hash) return fail(ErrorCode::kFixData, path + ": its hash " + to_hex(hash) + " differs from the manifest's " + to_hex(expected.hash) + ": the file is damaged");
  return SafetensorsFile::open(path);
}

// Copies the file's tensors to their places; each place is filled once.
Status fill(const SafetensorsFile& file, const std::string& path, const std::map<std::string, TensorView>& places, std::set<std::string>& filled) {
  for (const auto& have : file.tensors()) {
    const auto place = places.find(have.name);
    if (place == places.end()) return fail(ErrorCode::kFixData, path + ": tensor " + have.name + " belongs to another model than the configuration's");
    const TensorView& want = place->second;
    if (have.dtype != "F32" || have.shape != want.shape)
      return fail(ErrorCode::kFixData, path + ": tensor " + have.name + " is " + have.dtype + " " + shape_text(have.shape) + ", the configuration needs F32 " + shape_text(want.shape));
    if (!filled.insert(have.name).second) return fail(ErrorCode::kFixData, path + ": tensor " + have.name + " is in two files of the checkpoint");
    std::memcpy(const_cast<void*>(want.data), have.data, size_t(have.size_bytes));
  }
  return {};
}

}  // namespace

Result<model::State> read_checkpoint(const std::string& folder, const FunctionConfig& function) {
  TESSERA_ASSIGN(const Manifest manifest, read_manifest(folder));
  model::State state = model::State::empty(function);
  state.step = manifest.scalars.step;
  state.adam_steps = manifest.scalars.adam_steps;
  std::map<std::string, TensorView> places;
  for (const auto& view : state_tensors(state)) places[view.name] = view;
  std::set<std::string> filled;
  for (const auto& expected : manifest.files) {
    const std::string path = folder + "/" + expected.name;
    TESSERA_ASSIGN(const SafetensorsFile file, open_verified(path, expected));
    TESSERA_TRY(fill(file, path, places, filled));
  }
  for (const auto& [name, place] : places)
    if (!filled.contains(name)) return fail(ErrorCode::kFixData, folder + ": tensor " + name + " is missing (" + std::to_string(places.size() - filled.size()) + " of " + std::to_string(places.size()) + " are)");
  if (const StateDigest digest = state.digest(); digest != manifest.scalars.state_digest)
    return fail(ErrorCode::kFixData, folder + ": the state's digest " + to_hex(digest) + " differs from the manifest's " + to_hex(manifest.scalars.state_digest) + ": damaged");
  return state;
}

namespace {

Status publish(const Snapshot& snapshot, const std::string& root, const std::filesystem::path& final_path) {
  TESSERA_ASSIGN(const proto::CheckpointFile file, write_snapshot(snapshot, root));
  json manifest = scalars_json(snapshot.scalars);
  manifest["files"] = json::array({{{"file", file.file}, {"size_bytes", file.size_bytes}, {"hash", to_hex(file.hash)}}});
  manifest["tensors"] = tensors_json(snapshot.tensors, file.file);
  const std::string attempt = root + "/" + file.attempt;
  TESSERA_TRY(write_file_atomic(attempt + "/manifest.json", seal_json(manifest)));
  std::error_code error;
  std::filesystem::rename(attempt, final_path, error);
  if (error) return fail(ErrorCode::kIo, "cannot rename " + attempt + " to " + final_path.string() + ": " + error.message());
  return fsync_folder(root);
}

}  // namespace

Status write_checkpoint(const model::State& state, const Scalars& scalars, const std::string& folder) {
  const std::filesystem::path final_path = std::filesystem::absolute(folder);
  const std::string root = final_path.parent_path().string();
  if (std::filesystem::exists(final_path)) return fail(ErrorCode::kIo, folder + " exists; choose another --out or remove it");
  const Snapshot snapshot{scalars, {}, 0, 1, state_tensors(state), {}};  // written from the state itself: no second copy
  Status done = publish(snapshot, root, final_path);
  std::error_code ignored;
  if (!done) std::filesystem::remove_all(root + "/" + attempt_name({}, scalars.step), ignored);
  return done;
}

}  // namespace tessera::checkpoint
