#include "worker/import/published.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "worker/import/model_shape.h"
#include "worker/import/pickle.h"
#include "worker/import/tensor_bytes.h"

namespace tessera::import {
namespace {

using model::TensorPlace;

// One network's state dict: names without "module.", in the file's order, which the optimizer's indices follow.
struct Network {
  std::vector<std::pair<std::string, const PickledTensor*>> ordered;
  std::map<std::string, const PickledTensor*> tensors;
};

std::string published_name(const TensorPlace& place) {
  const std::string prefix = "context_encoder.";
  return place.name.starts_with(prefix) ? "encoder." + place.name.substr(prefix.size()) : place.name;
}

class Reader {
 public:
  Reader(const std::string& path, const PublishedOptions& options, ZipArchive archive) : path_(path), options_(options), archive_(std::move(archive)) {}

  Result<Published> run() {
    TESSERA_ASSIGN(root_, read_pickle(archive_));
    if (!root_->as<Dict>()) return bad("holds no dictionary; a published checkpoint has the keys encoder, target_encoder, predictor, opt, epoch");
    for (const char* name : {"encoder", "target_encoder", "predictor"}) TESSERA_TRY(read_network(name));
    TESSERA_TRY(choose_function());
    out_.state = model::State::empty(out_.function);
    TESSERA_TRY(read_weights());
    TESSERA_TRY(read_optimizer());
    TESSERA_TRY(read_position());
    list_skipped();
    return std::move(out_);
  }

 private:
  tl::unexpected<Error> bad(const std::string& what, ErrorCode code = ErrorCode::kFixData) const { return fail(code, "[import] " + path_ + ": " + what); }
  Status with_path(Status status) const {
    if (!status && !status.error().message.starts_with("[import]")) return bad(status.error().message, status.error().code);
    return status;
  }

  Status read_network(const std::string& name) {
    const Value* dict = root_->get(name);
    if (!dict || !dict->as<Dict>()) return bad("key " + name + " is missing; the file has " + keys() + ", a published checkpoint has encoder, target_encoder and predictor");
    Network network;
    for (const auto& [key, value] : dict->as<Dict>()->items) {
      const std::string* text = key->as<std::string>();
      const PickledTensor* tensor = value->as<PickledTensor>();
      if (!text || !tensor) return bad(name + " holds something that is no named tensor");
      std::string plain = *text;
      while (plain.starts_with("module.")) plain = plain.substr(7);
      if (!network.tensors.emplace(plain, tensor).second) return bad(name + "." + plain + " is there twice");
      network.ordered.emplace_back(plain, tensor);
    }
    networks_[name] = std::move(network);
    return {};
  }

  std::string keys() const {
    std::string list;
    for (const auto& [key, value] : root_->as<Dict>()->items)
      if (const auto* text = key->as<std::string>(); text && list.size() < 200) list += (list.empty() ? "" : ", ") + text->substr(0, 40);
    return list.empty() ? "no keys" : "the keys " + list;
  }

  const PickledTensor* find(const std::string& full_name) const {
    const size_t dot = full_name.find('.');
    const auto network = networks_.find(full_name.substr(0, dot));
    if (network == networks_.end()) return nullptr;
    const auto it = network->second.tensors.find(full_name.substr(dot + 1));
    return it == network->second.tensors.end() ? nullptr : it->second;
  }

  Status choose_function() {
    if (options_.function) {
      out_.function = *options_.function;
      return {};
    }
    const auto shape_of = [&](const std::string& name) {
      const PickledTensor* tensor = find(name);
      return tensor ? std::optional(tensor->shape) : std::nullopt;
    };
    auto function = function_of_shapes(shape_of, options_.num_heads);
    if (!function) return bad(function.error().message, function.error().code);
    out_.function = *function;
    FunctionConfig& f = out_.function;
    f.masks.mode = "reference";
    f.precision = root_->get("scaler") && root_->get("scaler")->as<Dict>() ? "published" : "fp32";
    f.batch.tile_size = std::clamp<int64_t>(integer("batch_size", 1), 1, 65536);
    f.batch.tiles = std::clamp<int64_t>(integer("world_size", 1), 1, 65536);
    Status checked = check_function(f);
    for (const int64_t keep : {4, 0}) {  // small grids have targets that the published min_keep of 10 refuses
      if (checked) break;
      f.masks.min_keep = keep;
      checked = check_function(f);
    }
    return checked;
  }

  int64_t integer(const char* key, int64_t otherwise) const {
    const Value* value = root_->get(key);
    const int64_t* number = value ? value->as<int64_t>() : nullptr;
    return number ? *number : otherwise;
  }

  // Reads `tensor` into `out` as fp32 after checking its shape.
  Status read_tensor(const std::string& name, const PickledTensor* tensor, const std::vector<int64_t>& shape, float* out) {
    if (!tensor) return bad(name + " is missing");
    if (tensor->shape != shape)
      return bad(name + " is " + shape_text(tensor->shape) + ", " + (options_.function ? "the configuration" : "the rest of the file") + " needs " + shape_text(shape));
    if (!is_weight_dtype(tensor->dtype)) return bad(name + " is " + tensor->dtype + "; F32, BF16 and F16 are read");
    const ZipRecord& record = *archive_.find("data/" + tensor->key);
    const int64_t count = tensor->count(), width = tensor->dtype == "F32" ? 4 : 2;
    if (tensor->dtype == "F32" && tensor->contiguous() && record.size_bytes == 4 * count) {
      TESSERA_TRY(archive_.read("data/" + tensor->key, out));
    } else {
      std::vector<uint8_t> storage(static_cast<size_t>(record.size_bytes));
      TESSERA_TRY(archive_.read("data/" + tensor->key, storage.data()));
      copy_strided(*tensor, storage.data(), width, out);
    }
    out_.tensors += 1;
    out_.bytes += count * width;
    return with_path(check_finite(name, out, count));
  }

  static void copy_strided(const PickledTensor& t, const uint8_t* storage, int64_t width, float* out) {
    std::vector<int64_t> index(t.shape.size(), 0);
    int64_t at = t.offset;
    for (int64_t i = 0; i < t.count(); ++i) {
      widen(t.dtype, storage + at * width, 1, out + i);
      for (size_t d = t.shape.size(); d-- > 0;) {
        at += t.strides[d];
        if (++index[d] < t.shape[d]) break;
        at -= t.strides[d] * t.shape[d];
        index[d] = 0;
      }
    }
  }

  Status read_weights() {
    model::State& s = out_.state;
    const auto place_in = [&](model::FlatBuffers& role, const TensorPlace& place) {
      return role[size_t(place.bucket)].mutable_data_ptr<float>() + place.offset;
    };
    for (const TensorPlace& place : s.layout.tensors) {
      const std::string name = published_name(place);
      TESSERA_TRY(read_tensor(name, find(name), place.shape, place_in(s.weights, place)));
      used_.insert(name);
      if (place.network != model::Network::kContextEncoder) continue;
      TESSERA_TRY(read_tensor(place.target_name(), find(place.target_name()), place.shape, place_in(s.target, place)));
      used_.insert(place.target_name());
    }
    const std::pair<const char*, at::Tensor*> tables[] = {
        {"encoder.pos_embed", &s.context_position}, {"target_encoder.pos_embed", &s.target_position}, {"predictor.predictor_pos_embed", &s.predictor_position}};
    for (const auto& [name, table] : tables) {
      TESSERA_TRY(read_tensor(name, find(name), {1, table->size(0), table->size(1)}, table->mutable_data_ptr<float>()));
      used_.insert(name);
    }
    for (const auto& [prefix, network] : networks_)
      for (const auto& [name, tensor] : network.ordered)
        if (!used_.contains(prefix + "." + name))
          return bad(prefix + "." + name + " " + shape_text(tensor->shape) + " has no place in this model: it is deeper or of another kind than " + (options_.function ? "the configuration's" : "its other tensors say"));
    return {};
  }

  // Names in the order of the optimizer's indices: the published four groups.
  std::vector<std::string> optimizer_names(std::vector<size_t>& group_sizes) const {
    std::vector<std::string> names;
    for (const bool excluded : {false, true})
      for (const char* prefix : {"encoder", "predictor"}) {
        size_t count = 0;
        for (const auto& [name, tensor] : networks_.at(prefix).ordered)
          if ((name.find("bias") != std::string::npos || tensor->shape.size() == 1) == excluded) names.push_back(std::string(prefix) + "." + name), ++count;
        group_sizes.push_back(count);
      }
    return names;
  }

  Status read_optimizer() {
    const Value* opt = root_->get("opt");
    if (!options_.optimizer || !opt || !opt->as<Dict>()) {
      out_.skipped.push_back("opt: the moments start at zero");
      return {};
    }
    const Value *states = opt->get("state"), *groups = opt->get("param_groups");
    if (!states || !states->as<Dict>() || !groups || !groups->as<List>()) return bad("opt has no state and param_groups");
    std::vector<size_t> sizes;
    const std::vector<std::string> names = optimizer_names(sizes);
    std::map<std::string, int64_t> index_of;
    TESSERA_TRY(map_groups(*groups->as<List>(), names, sizes, index_of));
    std::map<int64_t, const Value*> by_index;
    for (const auto& [key, value] : states->as<Dict>()->items)
      if (const int64_t* index = key->as<int64_t>()) by_index[*index] = value.get();
    for (const TensorPlace& place : out_.state.layout.tensors) TESSERA_TRY(read_moments(place, index_of, by_index));
    return {};
  }

  Status map_groups(const List& groups, const std::vector<std::string>& names, const std::vector<size_t>& sizes, std::map<std::string, int64_t>& index_of) const {
    if (groups.items.size() != sizes.size()) return bad("opt has " + std::to_string(groups.items.size()) + " parameter groups, the published optimizer has four");
    size_t next = 0;
    for (size_t g = 0; g < sizes.size(); ++g) {
      const Value* params = groups.items[g]->get("params");
      const List* list = params ? params->as<List>() : nullptr;
      if (!list || list->items.size() != sizes[g])
        return bad("opt's parameter group " + std::to_string(g) + " holds " + std::to_string(list ? list->items.size() : 0) + " tensors, this model's has " + std::to_string(sizes[g]));
      for (const auto& item : list->items) {
        const int64_t* index = item->as<int64_t>();
        if (!index) return bad("opt's parameter group " + std::to_string(g) + " holds something that is no index");
        index_of[names[next++]] = *index;
      }
    }
    return {};
  }

  Status read_moments(const TensorPlace& place, const std::map<std::string, int64_t>& index_of, const std::map<int64_t, const Value*>& by_index) {
    const std::string name = published_name(place);
    const auto index = index_of.find(name);
    const auto entry = index == index_of.end() ? by_index.end() : by_index.find(index->second);
    if (entry == by_index.end()) return bad("opt has no state for " + name);
    for (const auto& [key, role] : {std::pair{"exp_avg", &out_.state.exp_avg}, std::pair{"exp_avg_sq", &out_.state.exp_avg_sq}}) {
      const Value* value = entry->second->get(key);
      float* out = (*role)[size_t(place.bucket)].mutable_data_ptr<float>() + place.offset;
      TESSERA_TRY(read_tensor("opt " + std::string(key) + " of " + name, value ? value->as<PickledTensor>() : nullptr, place.shape, out));
    }
    return read_adam_step(name, entry->second->get("step"));
  }

  Status read_adam_step(const std::string& name, const Value* value) {
    double step = -1;
    if (value && value->as<int64_t>()) step = double(*value->as<int64_t>());
    if (const PickledTensor* tensor = value ? value->as<PickledTensor>() : nullptr; tensor && tensor->count() == 1 && tensor->dtype == "F32") {
      float one = 0;
      TESSERA_TRY(read_tensor("opt step of " + name, tensor, tensor->shape, &one));
      step = one;
    }
    if (!(step >= 0 && step < 1e9 && step == std::floor(step))) return bad("opt step of " + name + " is no whole number");
    if (adam_steps_ >= 0 && adam_steps_ != int64_t(step))
      return bad("opt step of " + name + " is " + std::to_string(int64_t(step)) + ", of others " + std::to_string(adam_steps_) + "; they must agree");
    adam_steps_ = int64_t(step);
    return {};
  }

  // k = finished epochs x steps per epoch.
  Status read_position() {
    out_.epoch = integer("epoch", -1);
    if (out_.epoch < 0 || out_.epoch > 1'000'000) return bad("key epoch is missing or no count");
    if (const Value* loss = root_->get("loss"); loss && loss->as<double>()) out_.loss = *loss->as<double>();
    model::State& s = out_.state;
    s.adam_steps = std::max<int64_t>(adam_steps_, 0);
    if (options_.steps_per_epoch > 0) {
      s.step = out_.epoch * options_.steps_per_epoch;
    } else if (adam_steps_ >= 0) {
      s.step = adam_steps_;
      if (out_.epoch > 0 && s.step % out_.epoch != 0)
        out_.skipped.push_back("epoch: " + std::to_string(s.step) + " updates are no whole number in each of " + std::to_string(out_.epoch) +
                               " epochs (skipped updates?), so the step is the optimizer's count; --steps-per-epoch corrects it");
    } else if (out_.epoch > 0) {
      return bad("has " + std::to_string(out_.epoch) + " finished epochs and no optimizer to count the updates from; add --steps-per-epoch N", ErrorCode::kUsage);
    }
    if (s.step < s.adam_steps)
      return bad("the optimizer counts " + std::to_string(s.adam_steps) + " updates, more than " + std::to_string(out_.epoch) + " epochs of " + std::to_string(options_.steps_per_epoch) + " steps", ErrorCode::kUsage);
    return {};
  }

  void list_skipped() {
    static const std::map<std::string, std::string> kReasons{{"scaler", "gradients are not scaled here"},
                                                             {"lr", "the schedule gives it"},
                                                             {"loss", "of the past epoch"},
                                                             {"batch_size", "the configuration says it"},
                                                             {"world_size", "any number of workers continues"}};
    for (const auto& [key, value] : root_->as<Dict>()->items) {
      const std::string* text = key->as<std::string>();
      if (!text || networks_.contains(*text) || *text == "opt" || *text == "epoch") continue;
      const auto reason = kReasons.find(*text);
      out_.skipped.push_back(text->substr(0, 40) + ": " + (reason == kReasons.end() ? "unknown here" : reason->second));
    }
  }

  std::string path_;
  PublishedOptions options_;
  ZipArchive archive_;
  ValuePtr root_;
  std::map<std::string, Network> networks_;
  std::set<std::string> used_;
  int64_t adam_steps_ = -1;
  Published out_;
};

}  // namespace

Result<Published> read_published(const std::string& path, const PublishedOptions& options) {
  TESSERA_ASSIGN(ZipArchive archive, ZipArchive::open(path));
  return Reader(path, options, std::move(archive)).run();
}

}  // namespace tessera::import
