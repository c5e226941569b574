#include <caffe2/serialize/inline_container.h>

#include <cstring>
#include <filesystem>

#include "worker/model/io/export.h"
#include "worker/model/io/export_parts.h"

namespace tessera::model {
namespace {

// Emits pickle protocol 2 with the opcodes and globals that torch.load(weights_only=True) accepts; tensors become records.
class Emitter {
 public:
  void open_dict() { out_ += "}("; }  // entries follow as key, value ...
  void open_ordered() { out_ += "ccollections\nOrderedDict\n)R("; }
  void close_dict() { out_ += 'u'; }
  void open_list() { out_ += "]("; }
  void close_list() { out_ += 'e'; }
  void open_tuple() { out_ += '('; }
  void close_tuple() { out_ += 't'; }
  void none() { out_ += 'N'; }
  void boolean(bool value) { out_ += value ? '\x88' : '\x89'; }
  void text(const std::string& value) {
    const auto size = uint32_t(value.size());
    out_ += 'X';
    out_.append(reinterpret_cast<const char*>(&size), 4);
    out_ += value;
  }
  void integer(int64_t value) {
    out_ += "\x8a\x08";
    out_.append(reinterpret_cast<const char*>(&value), 8);
  }
  void floating(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, 8);
    out_ += 'G';
    for (int shift = 56; shift >= 0; shift -= 8) out_ += char(bits >> shift & 0xFF);
  }
  void tensor(const TensorView& view) {
    out_ += "ctorch._utils\n_rebuild_tensor_v2\n((";
    text("storage");
    out_ += "ctorch\nFloatStorage\n";
    text(std::to_string(records_.size()));
    text("cpu");
    integer(view.count());
    out_ += "tQ";
    integer(0);
    open_tuple();
    for (const int64_t size : view.shape) integer(size);
    close_tuple();
    open_tuple();
    int64_t stride = view.count();
    for (const int64_t size : view.shape) integer(stride /= size);
    close_tuple();
    boolean(false);
    out_ += "ccollections\nOrderedDict\n)RtR";
    records_.push_back(view);
  }
  const std::vector<TensorView>& records() const { return records_; }
  std::string finish() const { return "\x80\x02" + out_ + "."; }

 private:
  std::string out_;
  std::vector<TensorView> records_;
};

void emit_network(Emitter& e, const std::string& key, const std::vector<TensorView>& tensors) {
  e.text(key);
  e.open_ordered();
  for (const TensorView& tensor : tensors) e.text("module." + tensor.name), e.tensor(tensor);
  e.close_dict();
}

struct Group {
  bool excluded;
  std::vector<int64_t> indices;
};
// One trained tensor with its index in the published optimizer; frozen tables have an index and no state.
struct Indexed {
  int64_t index;
  TensorView first, second;
};

// The published order: decayed of the encoder, decayed of the predictor, then the undecayed of each.
void index_parameters(const State& state, std::vector<Group>& groups, std::vector<Indexed>& moments) {
  int64_t next = 0;
  const auto view = [&](const FlatBuffers& role, const TensorPlace& place) {
    return TensorView{place.name, "F32", place.shape, role[size_t(place.bucket)].const_data_ptr<float>() + place.offset, place.count * 4};
  };
  for (const bool excluded : {false, true})
    for (const Network network : {Network::kContextEncoder, Network::kPredictor}) {
      groups.push_back({excluded, {}});
      const auto take = [&] { groups.back().indices.push_back(next++); };
      if (!excluded && network == Network::kContextEncoder) take();  // pos_embed
      for (const TensorPlace& place : state.layout.tensors) {
        if (place.network != network || place.decayed == excluded) continue;
        moments.push_back({next, view(state.exp_avg, place), view(state.exp_avg_sq, place)});
        take();
        if (place.name == "predictor.mask_token") take();  // predictor_pos_embed
      }
    }
}

void emit_group(Emitter& e, const Group& group, const OptimizerConfig& c) {
  const auto flag = [&](const char* key, bool value) { e.text(key), e.boolean(value); };
  e.open_dict();
  if (group.excluded) flag("WD_exclude", true);
  e.text("weight_decay");
  if (group.excluded) e.integer(0);
  else e.floating(c.weight_decay);
  e.text("lr"), e.floating(c.lr);
  e.text("betas"), e.open_tuple(), e.floating(c.betas[0]), e.floating(c.betas[1]), e.close_tuple();
  e.text("eps"), e.floating(c.eps);
  for (const char* key : {"amsgrad", "maximize", "capturable", "differentiable"}) flag(key, false);
  e.text("foreach"), e.none();
  e.text("fused"), e.none();
  flag("decoupled_weight_decay", true);
  e.text("params"), e.open_list();
  for (const int64_t index : group.indices) e.integer(index);
  e.close_list();
  e.close_dict();
}

void emit_optimizer(Emitter& e, const State& state, const OptimizerConfig& c, const float* step) {
  std::vector<Group> groups;
  std::vector<Indexed> moments;
  index_parameters(state, groups, moments);
  e.text("opt");
  e.open_dict();
  e.text("state"), e.open_dict();
  for (const Indexed& m : moments) {
    e.integer(m.index);
    e.open_dict();
    e.text("step"), e.tensor({"step", "F32", {}, step, 4});
    e.text("exp_avg"), e.tensor(m.first);
    e.text("exp_avg_sq"), e.tensor(m.second);
    e.close_dict();
  }
  e.close_dict();
  e.text("param_groups"), e.open_list();
  for (const Group& group : groups) emit_group(e, group, c);
  e.close_list();
  e.close_dict();
}

void emit_all(Emitter& e, const FunctionConfig& f, const State& state, int64_t steps_per_epoch, const float* step) {
  emit_network(e, "encoder", encoder_tensors(state, Encoder::kContext));
  emit_network(e, "predictor", predictor_tensors(state));
  if (state.adam_steps > 0) emit_optimizer(e, state, f.optimizer, step);
  else e.text("opt"), e.none();
  e.text("scaler"), e.none();
  emit_network(e, "target_encoder", encoder_tensors(state, Encoder::kTarget));
  e.text("epoch"), e.integer(steps_per_epoch > 0 ? state.step / steps_per_epoch : 0);
  e.text("batch_size"), e.integer(f.batch.tile_size);
  e.text("world_size"), e.integer(f.batch.tiles);
  e.text("lr"), e.floating(f.optimizer.lr);
}

Status write_archive(const std::string& path, const Emitter& e) {
  const std::string partial = path + ".partial";
  const std::string pickle = e.finish(), order = "little";
  try {
    caffe2::serialize::PyTorchStreamWriter writer(partial);
    writer.writeRecord("data.pkl", pickle.data(), pickle.size());
    writer.writeRecord("byteorder", order.data(), order.size());
    for (size_t i = 0; i < e.records().size(); ++i) writer.writeRecord("data/" + std::to_string(i), e.records()[i].data, size_t(e.records()[i].size_bytes));
    writer.writeEndOfFile();
  } catch (const std::exception&) {  // its message is a stack trace
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    return fail(ErrorCode::kIo, "[export] cannot write " + partial + "; check its folder's permissions and free space");
  }
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  if (error) return fail(ErrorCode::kIo, "[export] cannot rename " + partial + ": " + error.message());
  return {};
}

}  // namespace

Result<Exported> export_pth(const FunctionConfig& f, const State& state, const PthOptions& options, const ExportTo& to) {
  TESSERA_TRY(prepare(to, {"model.pth.tar"}));
  Exported out;
  Emitter e;
  const float step = float(state.adam_steps);
  e.open_dict();
  if (!options.only) {
    emit_all(e, f, state, options.steps_per_epoch, &step);
  } else {
    const bool target = *options.only == Encoder::kTarget;
    emit_network(e, target ? "target_encoder" : "encoder", encoder_tensors(state, *options.only));
    out.skipped = {target ? "context_encoder" : "target_encoder", "predictor", "optimizer"};
  }
  e.close_dict();
  const std::string path = to.folder + "/model.pth.tar";
  TESSERA_TRY(write_archive(path, e));
  out.tensors = int64_t(e.records().size());
  out.bytes = int64_t(std::filesystem::file_size(path));
  out.files = {path};
  return out;
}

}  // namespace tessera::model
