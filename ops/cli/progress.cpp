#include "ops/cli/progress.h"

#include <cmath>

#include "common/file.h"

namespace tessera::cli {
namespace {

std::string decimal(double value, const char* form) {
  char text[40];
  std::snprintf(text, sizeof text, form, value);
  return text;
}
std::string percent(double ratio) { return decimal(100 * ratio, "%.0f %%"); }

const Json& array_at(const Json& document, const char* key) {
  static const Json none = Json::array();
  const auto it = document.find(key);
  return it != document.end() && it->is_array() ? *it : none;
}

std::string padded(std::string text, size_t width) {
  if (text.size() < width) text.append(width - text.size(), ' ');
  return text;
}

std::string members(const Json& status) {
  std::string out;
  for (const Json& worker : array_at(status, "workers")) {
    const double rank = number_at(worker, "/rank", -1);
    out += "  worker " + padded(text_at(worker, "/id"), 16) + padded(text_at(worker, "/state"), 10) + padded(rank < 0 ? "no rank" : "rank " + decimal(rank, "%.0f"), 9) +
           padded(text_at(worker, "/device"), 8) + padded(human_bytes(int64_t(number_at(worker, "/memory_bytes"))), 9) + text_at(worker, "/reason") + "\n";
  }
  for (const Json& loader : array_at(status, "loaders"))
    out += "  loader " + padded(text_at(loader, "/id"), 16) + padded(text_at(loader, "/state"), 10) + padded(decimal(number_at(loader, "/images_per_second"), "%.0f images/s"), 17) +
           text_at(loader, "/reason") + "\n";
  return out;
}

std::string cell(const Json& document, const char* pointer, bool as_percent) {
  const double value = number_at(document, pointer, NAN);
  if (std::isnan(value)) return "-";
  return as_percent ? decimal(100 * value, "%.1f %%") : decimal(value, "%.4g");
}

// "39.3 % (+6.9 +- 0.6)": the baseline, and how far the model is above it.
std::string baseline_cell(const Json& probe, const std::string& name, bool as_percent) {
  const std::string baseline = cell(probe, ("/baselines/" + name).c_str(), as_percent);
  const double above = number_at(probe, "/above_baselines/" + name + "/value", NAN), error = number_at(probe, "/above_baselines/" + name + "/standard_error", NAN);
  if (std::isnan(above) || std::isnan(error) || !as_percent) return baseline;
  return baseline + " (" + decimal(100 * above, "%+.1f") + " +- " + decimal(100 * error, "%.1f") + ")";
}

std::string table_row(const std::string& name, const Json& probe) {
  const double value = number_at(probe, "/value", NAN);
  const std::string metric = text_at(probe, "/metric", "value");
  const bool share = metric.find("accuracy") != std::string::npos && value <= 1.0;
  return "  " + padded(name, 12) + padded(metric, 18) + padded(cell(probe, "/value", share), 10) + padded(cell(probe, "/standard_error", share), 16) +
         padded(baseline_cell(probe, "random_init", share), 24) + baseline_cell(probe, "pixels", share) + "\n";
}

std::string steps_text(const Json& status) {
  const auto step = int64_t(number_at(status, "/progress/step")), total = int64_t(number_at(status, "/progress/total_steps"));
  std::string out = "step " + human_count(step);
  if (total > 0) out += "/" + human_count(total) + " (" + percent(double(step) / double(total)) + ")";
  return out;
}

std::string progress_text(const Json& status) {
  std::string line = steps_text(status);
  const double loss = number_at(status, "/training/loss", NAN), rate = number_at(status, "/throughput/images_per_second"), eta = number_at(status, "/progress/eta_seconds", -1);
  if (!std::isnan(loss)) line += "  loss " + decimal(loss, "%.4f");
  if (rate > 0) line += "  " + decimal(rate, "%.0f images/s");
  if (eta >= 0) line += "  ETA " + human_seconds(eta);
  return line;
}

}  // namespace

double number_at(const Json& document, const std::string& pointer, double fallback) {
  const Json::json_pointer at(pointer);
  if (!document.contains(at)) return fallback;
  const Json& value = document[at];
  if (value.is_object() && value.contains("value") && value["value"].is_number()) return value["value"];
  return value.is_number() ? value.get<double>() : fallback;
}
std::string text_at(const Json& document, const std::string& pointer, const std::string& fallback) {
  const Json::json_pointer at(pointer);
  if (!document.contains(at) || !document[at].is_string()) return fallback;
  return document[at];
}

std::string status_line(const Json& status) {
  const std::string state = text_at(status, "/run/state", "UNKNOWN"), reason = text_at(status, "/run/reason");
  if (state == "RUNNING") return progress_text(status);
  return state + (reason.empty() ? "" : ": " + reason) + (number_at(status, "/progress/step") > 0 ? "  " + steps_text(status) : "");
}

std::string status_page(const Json& status) {
  std::string out = "run " + text_at(status, "/run/id", "?") + "  " + text_at(status, "/run/state", "UNKNOWN");
  const std::string reason = text_at(status, "/run/reason");
  out += (reason.empty() ? "" : ": " + reason) + "\n";
  out += "  " + progress_text(status) + "\n";
  out += "  generation " + text_at(status, "/run/generation", "none") + ", epoch " + human_count(int64_t(number_at(status, "/progress/epoch"))) + ", " +
         human_count(int64_t(number_at(status, "/progress/images_seen"))) + " images seen\n";
  out += members(status);
  if (const Json::json_pointer place("/run/placement_independent"); status.contains(place) && status[place] == false)
    out += "  other bits for another number of workers (function.reduction " + text_at(status, "/run/reduction") + ")\n";
  if (const double step = number_at(status, "/checkpoint/last_step", -1); step >= 0) {
    const double age = number_at(status, "/checkpoint/age_seconds", -1);
    out += "  checkpoint of step " + human_count(int64_t(step)) + ", " + human_bytes(int64_t(number_at(status, "/checkpoint/bytes"))) + (age >= 0 ? ", " + human_seconds(age) + " old" : "") + "\n";
  } else {
    out += "  no checkpoint yet\n";
  }
  for (const Json& alert : array_at(status, "alerts")) out += "  " + text_at(alert, "/severity", "alert") + ": " + text_at(alert, "/reason") + "\n";
  return out;
}

std::string event_line(const Json& event) {
  return clock_time(number_at(event, "/time")) + " " + padded(text_at(event, "/severity", "info"), 8) + " " + text_at(event, "/text", text_at(event, "/message"));
}

std::string evaluation_table(const Json& evaluation) {
  std::string out = "  " + padded("probe", 12) + padded("metric", 18) + padded("value", 10) + padded("standard error", 16) + padded("random_init", 24) + "pixels\n";
  const auto probes = evaluation.find("probes");
  if (probes == evaluation.end() || !probes->is_object() || probes->empty()) return out + table_row("linear", evaluation);
  for (const auto& [name, probe] : probes->items()) out += table_row(name, probe);
  return out;
}

}  // namespace tessera::cli
