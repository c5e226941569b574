#include "coordinator/status.h"

#include <algorithm>
#include <fstream>
#include <filesystem>
#include <prometheus/registry.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/text_serializer.h>
#include <sstream>

namespace tessera::coordinator {
namespace {

using json = nlohmann::ordered_json;

std::string generation_text(const State& s) { return to_string(s.world.generation); }

json workers_json(const StatusInput& in) {
  json list = json::array();
  for (const auto& [id, w] : in.state.workers)
    list.push_back({{"id", id},
                    {"rank", w.rank < 0 ? json(nullptr) : json(w.rank)},
                    {"state", worker_state_name(w.state)},
                    {"reason", w.reason},
                    {"step", w.step},
                    {"heartbeat_age_seconds", double(in.now - w.last_heard) / 1000.0},
                    {"step_seconds_p50", w.step_seconds_p50},
                    {"device", w.device},
                    {"host", w.host},
                    {"pid", w.pid},
                    {"memory_bytes", w.memory_bytes}});
  return list;
}

// Totals of a loader since it started. The stages are thread time; idle: threads that nobody asked for anything; blocked: wall
// time in which it waited for trainers to take what was made.
json stage_seconds(const proto::LoaderStatus& s) {
  return {{"read", s.read_seconds}, {"decode", s.decode_seconds}, {"resize", s.resize_seconds}, {"mask", s.mask_seconds}, {"send", s.send_seconds}, {"idle", s.idle_seconds}, {"blocked", s.blocked_seconds}};
}

json loaders_json(const State& s) {
  json list = json::array();
  for (const auto& [name, l] : s.loaders)
    list.push_back({{"id", name},
                    {"state", l.serving ? "SERVING" : "OPENING"},
                    {"reason", l.reason},
                    {"images_per_second", l.status.images_per_second},
                    {"queue", l.status.queue},
                    {"unsent_bytes", l.status.unsent_bytes},
                    {"seconds", stage_seconds(l.status)},
                    {"shared_tiles", l.status.shared_tiles},
                    {"images_total", l.status.images_total},
                    {"bad_samples", l.status.bad_samples}});
  return list;
}

json evaluation_json(const std::string& run_dir) {
  json out = json::object();
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(run_dir + "/evaluation", error)) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream file(entry.path());
    json doc = json::parse(file, nullptr, false);
    if (doc.is_object()) out[entry.path().stem().string()] = std::move(doc);
  }
  return out;
}

json pictures_json(const std::string& run_dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(run_dir + "/pictures", error))
    if (entry.path().extension() == ".png") names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

void Throughput::add(const proto::StepDone& done) {
  window_.push_back(done);
  if (window_.size() > 100) window_.erase(window_.begin());
}
double Throughput::images_per_second() const {
  double images = 0, seconds = 0;
  for (const auto& d : window_) images += double(d.images), seconds += d.split.total();
  return seconds > 0 ? images / seconds : 0;
}
double Throughput::step_seconds(double quantile) const {
  if (window_.empty()) return 0;
  std::vector<double> seconds;
  for (const auto& d : window_) seconds.push_back(d.split.total());
  std::sort(seconds.begin(), seconds.end());
  return seconds[size_t(quantile * double(seconds.size() - 1))];
}
proto::TimeSplit Throughput::split() const {
  proto::TimeSplit sum;
  for (const auto& d : window_) {
    sum.data += d.split.data, sum.compute += d.split.compute, sum.communication += d.split.communication;
    sum.checkpoint += d.split.checkpoint, sum.other += d.split.other;
  }
  const double n = std::max<double>(1, double(window_.size()));
  return {sum.data / n, sum.compute / n, sum.communication / n, sum.checkpoint / n, sum.other / n};
}

json status_document(const StatusInput& in) {
  const State& s = in.state;
  const Step total = final_step(s, in.config);
  const double rate = in.throughput.images_per_second(), step_seconds = in.throughput.step_seconds(0.5);
  const auto split = in.throughput.split();
  const double whole = std::max(1e-9, split.total());
  json doc;
  doc["schema"] = 1;
  doc["revision"] = in.revision;
  doc["run"] = {{"id", in.config.run_id},
                {"name", in.config.run_id},
                {"state", run_state_name(s.run_state)},
                {"reason", s.reason},
                {"generation", generation_text(s)},
                {"generations", s.generation_count},
                {"root_step", s.root},
                {"lineage", in.config.lineage},
                {"function_id", to_hex(function_id(in.config.function))},
                {"reduction", in.config.function.reduction},
                {"placement_independent", placement_caveat(in.config.function).empty()},
                {"run_dir", in.config.run_dir},
                {"started_at", in.started_at},
                {"last_progress_at", s.last_progress > 0 ? json(in.unix_now - double(in.now - s.last_progress) / 1000.0) : json(nullptr)}};
  doc["progress"] = {{"step", s.committed},
                     {"total_steps", total},
                     {"epoch", s.length.steps_per_epoch > 0 ? s.committed / s.length.steps_per_epoch : 0},
                     {"ratio", total > 0 ? double(s.committed) / double(total) : 0.0},
                     {"images_seen", s.committed * in.config.function.batch.global()},
                     {"eta_seconds", step_seconds > 0 ? json(double(total - s.committed) * step_seconds) : json(nullptr)}};
  doc["training"] = {{"loss", s.last_step ? json(s.last_step->loss) : json(nullptr)},
                     {"lr", s.last_step ? json(s.last_step->lr) : json(nullptr)},
                     {"weight_decay", s.last_step ? json(s.last_step->weight_decay) : json(nullptr)},
                     {"ema", s.last_step ? json(s.last_step->ema) : json(nullptr)},
                     {"effective_rank", s.last_step && s.last_step->effective_rank > 0 ? json(s.last_step->effective_rank) : json(nullptr)},
                     {"skipped_steps", s.skipped_total}};
  doc["throughput"] = {{"images_per_second", rate}, {"step_seconds_p50", step_seconds}, {"step_seconds_p95", in.throughput.step_seconds(0.95)},
                       {"goodput_ratio", in.unix_now > in.started_at ? std::min(1.0, double(s.committed) * step_seconds / (in.unix_now - in.started_at)) : 0.0}};
  doc["time"] = {{"data", split.data / whole}, {"compute", split.compute / whole}, {"communication", split.communication / whole}, {"checkpoint", split.checkpoint / whole}, {"idle", split.other / whole}};
  doc["workers"] = workers_json(in);
  doc["loaders"] = loaders_json(s);
  const CheckpointEntry* last = nullptr;
  for (const auto& [step, entry] : s.checkpoints)
    if (entry.ok) last = &entry;
  doc["checkpoint"] = {{"last_step", last ? json(last->step) : json(nullptr)},
                       {"age_seconds", last && last->published_at > 0 ? json(double(in.now - last->published_at) / 1000.0) : json(nullptr)},
                       {"bytes", last ? json(last->size_bytes) : json(nullptr)},
                       {"verified", last != nullptr}};
  doc["digests"] = {{"state_digest", to_hex(s.last_state_digest)}, {"batch_digest", to_hex(s.batch_chain)}};
  doc["dataset"] = s.dataset ? json{{"manifest_digest", to_hex(s.dataset->manifest_digest)}, {"samples", s.dataset->sample_count}} : json(nullptr);
  doc["alerts"] = json::array();
  for (const auto& alert : s.alerts) doc["alerts"].push_back({{"severity", alert.severity}, {"reason", alert.reason}, {"since", in.unix_now - double(in.now - alert.since) / 1000.0}});
  doc["evaluation"] = evaluation_json(in.config.run_dir);
  doc["pictures"] = pictures_json(in.config.run_dir);
  return doc;
}

json checkpoint_list(const State& s) {
  json list = json::array();
  for (const auto& [step, e] : s.checkpoints)
    list.push_back({{"step", step}, {"path", e.path}, {"bytes", e.size_bytes}, {"state_digest", to_hex(e.state_digest)}, {"ok", e.ok}, {"reason", e.reason}});
  return {{"schema", 1}, {"checkpoints", list}};
}

std::string prometheus_text(const StatusInput& in) {
  prometheus::Registry registry;
  const State& s = in.state;
  const auto gauge = [&](const char* name, const char* help, double value) { prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({}).Set(value); };
  const auto counter = [&](const char* name, const char* help, double value) { prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({}).Increment(value); };
  counter("tessera_steps_committed_total", "Steps in the ledger.", double(s.committed));
  counter("tessera_images_total", "Images trained on.", double(s.committed * in.config.function.batch.global()));
  counter("tessera_skipped_steps_total", "Steps skipped for a non-finite gradient.", double(s.skipped_total));
  counter("tessera_generations_total", "Worlds formed.", double(s.generation_count));
  gauge("tessera_progress_ratio", "Share of the run that is done.", final_step(s, in.config) > 0 ? double(s.committed) / double(final_step(s, in.config)) : 0);
  gauge("tessera_images_per_second", "Training throughput over the last steps.", in.throughput.images_per_second());
  gauge("tessera_step_seconds", "Median seconds of a step.", in.throughput.step_seconds(0.5));
  if (s.last_step) {
    gauge("tessera_loss", "Loss of the last committed step.", s.last_step->loss);
    gauge("tessera_learning_rate", "Learning rate of the last committed step.", s.last_step->lr);
    gauge("tessera_gradient_norm", "l2 norm of its gradient.", s.last_step->gradient_norm);
    if (s.last_step->effective_rank > 0) gauge("tessera_effective_rank", "Effective rank of the target features.", s.last_step->effective_rank);
  }
  auto& state = prometheus::BuildGauge().Name("tessera_run_state").Help("1 for the state the run is in.").Register(registry);
  for (int i = 0; i <= int(RunState::kCancelled); ++i) state.Add({{"state", run_state_name(RunState(i))}}).Set(int(s.run_state) == i);
  auto& workers = prometheus::BuildGauge().Name("tessera_worker_state").Help("1 for the state a worker is in.").Register(registry);
  auto& memory = prometheus::BuildGauge().Name("tessera_worker_memory_bytes").Help("Resident memory of a trainer.").Register(registry);
  for (const auto& [id, w] : s.workers) {
    workers.Add({{"worker", id}, {"state", worker_state_name(w.state)}}).Set(1);
    memory.Add({{"worker", id}}).Set(double(w.memory_bytes));
  }
  auto& loaders = prometheus::BuildGauge().Name("tessera_loader_images_per_second").Help("Images a loader delivers.").Register(registry);
  auto& queue = prometheus::BuildGauge().Name("tessera_loader_queue").Help("Tiles asked of a loader and not yet sent.").Register(registry);
  auto& unsent = prometheus::BuildGauge().Name("tessera_loader_unsent_bytes").Help("Pixels being made, or made and not yet taken.").Register(registry);
  auto& stages = prometheus::BuildCounter().Name("tessera_loader_stage_seconds_total").Help("A loader's time by stage; idle: nobody asks; blocked: trainers do not take.").Register(registry);
  for (const auto& [name, l] : s.loaders) {
    loaders.Add({{"loader", name}}).Set(l.status.images_per_second);
    queue.Add({{"loader", name}}).Set(l.status.queue);
    unsent.Add({{"loader", name}}).Set(double(l.status.unsent_bytes));
    const json seconds = stage_seconds(l.status);
    for (const auto& [stage, total] : seconds.items()) stages.Add({{"loader", name}, {"stage", stage}}).Increment(total.get<double>());
  }
  const auto split = in.throughput.split();
  auto& time = prometheus::BuildGauge().Name("tessera_step_phase_seconds").Help("Mean seconds of a step by phase.").Register(registry);
  time.Add({{"phase", "data"}}).Set(split.data);
  time.Add({{"phase", "compute"}}).Set(split.compute);
  time.Add({{"phase", "communication"}}).Set(split.communication);
  time.Add({{"phase", "checkpoint"}}).Set(split.checkpoint);
  int64_t checkpoint_step = -1;
  for (const auto& [step, entry] : s.checkpoints)
    if (entry.ok) checkpoint_step = step;
  gauge("tessera_checkpoint_last_step", "Newest published checkpoint.", double(checkpoint_step));
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, registry.Collect());
  return out.str();
}

}  // namespace tessera::coordinator
