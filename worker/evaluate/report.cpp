#include "worker/evaluate/report.h"

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include "common/file.h"
#include "common/version.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/evaluate/curves.h"

namespace tessera::evaluate {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kCurvePoints = 1000;
constexpr const char* kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#22262b;background:#faf9f6}"
    "h1,h2{line-height:1.2}table{border-collapse:collapse;margin:.5rem 0}th,td{padding:.2rem .8rem;border-bottom:1px solid #d6d4ce;text-align:right}"
    "th:first-child,td:first-child{text-align:left}img{max-width:100%;image-rendering:pixelated}pre,code{font:13px/1.4 ui-monospace,monospace}"
    "pre{overflow:auto;background:#f0eee8;padding:.8rem}svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:currentColor}"
    ".axis{fill:none;stroke:#a8a59c}.curve{fill:none;stroke:#2c7bb6;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){body{color:#e4e2dc;background:#191c20}pre{background:#23272c}th,td{border-color:#3a3f46}.curve{stroke:#6db3e8}}";

// What metrics.jsonl says: one row a step, the last of several (a step that was done again has the same bits).
struct Metrics {
  std::map<std::string, Points> curves;
  int64_t steps = 0, damaged_lines = 0;
  Json last;
};
constexpr const char* kCurves[] = {"loss", "lr", "effective_rank", "gradient_norm", "images_per_second"};

Metrics read_metrics(const std::string& path) {
  Metrics out;
  std::map<int64_t, std::map<std::string, double>> rows;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    Json row = Json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) {
      ++out.damaged_lines;
      continue;
    }
    auto& values = rows[row["step"].get<int64_t>()];
    values.clear();
    for (const char* name : kCurves)
      if (row.contains(name) && row[name].is_number()) values[name] = row[name].get<double>();
    out.last = std::move(row);
  }
  for (const auto& [step, values] : rows)
    for (const auto& [name, value] : values) out.curves[name].emplace_back(double(step), value);
  out.steps = int64_t(rows.size());
  return out;
}

// "linear-step-90" before "linear-step-100": a name's last number counts as a number.
std::pair<std::string, int64_t> order_of(const fs::path& path) {
  const std::string name = path.stem().string();
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  return {name.substr(0, digits), name.size() - digits > 0 && name.size() - digits < 19 ? std::stoll(name.substr(digits)) : 0};
}

std::vector<fs::path> files_in(const fs::path& folder, const std::string& extension) {
  std::vector<fs::path> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.is_regular_file(error) && entry.path().extension() == extension) out.push_back(entry.path());
  std::sort(out.begin(), out.end(), [](const fs::path& a, const fs::path& b) { return order_of(a) < order_of(b); });
  return out;
}

std::string cell(const std::string& text) { return "<td>" + html_text(text) + "</td>"; }
std::string percent(const Json& owner, const char* key) {
  if (!owner.is_object() || !owner.contains(key) || !owner[key].is_number()) return "";
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%", 100 * owner[key].get<double>());
  return text;
}
std::string key_values(const std::vector<std::pair<std::string, std::string>>& rows) {
  std::string out = "<table>";
  for (const auto& [key, value] : rows)
    if (!value.empty()) out += "<tr><th scope=\"row\">" + html_text(key) + "</th><td><code>" + html_text(value) + "</code></td></tr>";
  return out + "</table>\n";
}

std::string evaluation_html(const std::string& name, const Json& doc) {
  if (doc.value("metric", "") == "effective_rank") return "<h3>" + html_text(name) + "</h3><pre>" + html_text(doc.dump(1)) + "</pre>\n";  // monitors: no share of anything
  const Json none = Json::object(), alone{{doc.value("label", "value"), doc}};
  const Json& probes = doc.contains("probes") && doc["probes"].is_object() ? doc["probes"] : alone;
  std::string out = "<h3>" + html_text(name) + "</h3><table><tr><th>label</th><th>value</th><th>± error</th><th>random init</th><th>pixels</th></tr>";
  for (const auto& [label, probe] : probes.items()) {
    if (!probe.is_object()) continue;
    const Json& baselines = probe.contains("baselines") ? probe["baselines"] : none;
    out += "<tr>" + cell(label) + cell(percent(probe, "value")) + cell(percent(probe, "standard_error")) + cell(percent(baselines, "random_init")) + cell(percent(baselines, "pixels")) + "</tr>";
  }
  out += "</table>";
  if (doc.contains("settings")) out += "<details><summary>settings</summary><pre>" + html_text(doc["settings"].dump(1)) + "</pre></details>";
  return out + "\n";
}

std::string picture_html(const fs::path& path) {
  const auto bytes = read_file(path.string(), int64_t{64} << 20);
  if (!bytes) return "<p>" + html_text(bytes.error().message) + "</p>\n";
  const std::string name = html_text(path.filename().string());
  return "<figure><img alt=\"" + name + "\" src=\"data:image/png;base64," + base64(*bytes) + "\"><figcaption>" + name + "</figcaption></figure>\n";
}

struct Counted {
  std::string html;
  int64_t count = 0;
};

Counted evaluations(const fs::path& run) {
  Counted out;
  for (const fs::path& path : files_in(run / "evaluation", ".json")) {
    const auto text = read_file(path.string());
    const Json doc = text ? Json::parse(*text, nullptr, false) : Json();
    if (doc.is_object()) out.html += evaluation_html(path.stem().string(), doc), ++out.count;
    else out.html += "<p>" + html_text(path.string()) + " cannot be read and is left out.</p>\n";
  }
  if (out.html.empty()) out.html = "<p>None yet: <code>tessera evaluate linear RUN --data PATH</code> adds one.</p>\n";
  return out;
}

// Probes, k-NN and monitors of the checkpoints that were looked at during the run, over steps.
std::string online_curves(const fs::path& run) {
  std::map<std::string, Points> curves;
  for (const fs::path& path : files_in(run / "evaluation", ".json")) {
    if (!path.filename().string().starts_with("online-step-")) continue;
    const auto text = read_file(path.string());
    const Json doc = text ? Json::parse(*text, nullptr, false) : Json();
    if (!doc.is_object()) continue;
    const double step = double(order_of(path).second);
    const auto add = [&](const std::string& name, const Json& owner, const char* key, double scale) {
      if (owner.is_object() && owner.contains(key) && owner[key].is_number()) curves[name].emplace_back(step, scale * owner[key].get<double>());
    };
    const Json none = Json::object();
    for (const auto& [label, probe] : (doc.contains("probes") ? doc["probes"] : none).items()) {
      add(label + ": linear probe, %", probe, "value", 100);
      if (probe.is_object() && probe.contains("knn")) add(label + ": k-NN, %", probe["knn"], "value", 100);
    }
    const Json& monitors = doc.contains("monitors") ? doc["monitors"] : none;
    add("images: effective rank", monitors, "effective_rank", 1);
    add("images: mean deviation of a dimension", monitors, "deviation_mean", 1);
    add("images: mean cosine", monitors, "mean_cosine", 1);
  }
  std::string out;
  for (const auto& [name, points] : curves) out += svg_curve(name, thinned(points, kCurvePoints));
  return out.empty() ? "" : "<h2>During the run</h2>\n" + out;
}

Counted pictures(const fs::path& run) {
  Counted out;
  for (const char* folder : {"pictures", "evaluation"})
    for (const fs::path& path : files_in(run / folder, ".png")) out.html += picture_html(path), ++out.count;
  return out;
}

Counted checkpoints(const fs::path& run) {
  Counted out;
  std::vector<fs::path> folders;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", error))
    if (fs::exists(entry.path() / "manifest.json")) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());
  for (const fs::path& folder : folders) {
    const auto manifest = checkpoint::read_manifest(folder.string());
    if (manifest) out.html += "<tr>" + cell(std::to_string(manifest->scalars.step)) + "<td><code>" + to_hex(manifest->scalars.state_digest) + "</code></td><td><code>" + html_text(manifest->scalars.function_id) + "</code></td></tr>", ++out.count;
    else out.html += "<tr>" + cell(folder.filename().string()) + "<td colspan=\"2\">" + html_text(manifest.error().message) + "</td></tr>";
  }
  if (!out.html.empty()) out.html = "<table><tr><th>step</th><th>state digest</th><th>function id</th></tr>" + out.html + "</table>\n";
  return out;
}

std::string overview(const fs::path& run, const Metrics& metrics) {
  const auto text = [&](const char* key) {
    if (!metrics.last.is_object() || !metrics.last.contains(key)) return std::string();
    return metrics.last[key].is_string() ? metrics.last[key].get<std::string>() : metrics.last[key].dump();
  };
  char now[64];
  const std::time_t time = std::time(nullptr);
  std::strftime(now, sizeof now, "%Y-%m-%d %H:%M UTC", std::gmtime(&time));
  return key_values({{"folder", fs::absolute(run).string()}, {"steps logged", std::to_string(metrics.steps)}, {"last step", text("step")}, {"loss", text("loss")},
                     {"state digest before it", text("state_digest")}, {"batch digest (chain)", text("batch_chain")}, {"generation", text("generation")}, {"written", std::string(now) + " by tessera " + kVersion}});
}

}  // namespace

Result<Json> write_report(const std::string& run_name, const std::string& out) {
  fs::path run = run_name;
  if (!fs::exists(run) && fs::exists(fs::path("runs") / run_name)) run = fs::path("runs") / run_name;
  if (!fs::exists(run / "config.yaml") && !fs::exists(run / "metrics.jsonl")) return fail(ErrorCode::kFixData, run_name + " is no run: neither config.yaml nor metrics.jsonl is there");
  if (!run.has_filename()) run = run.parent_path();
  const std::string file = out.empty() ? (run / "report.html").string() : out, name = fs::absolute(run).filename().string();
  const Metrics metrics = read_metrics((run / "metrics.jsonl").string());
  const Counted evaluated = evaluations(run), drawn = pictures(run), saved = checkpoints(run);
  const auto config = read_file((run / "config.yaml").string());
  std::string html = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>" + html_text(name) + "</title><style>" + kStyle +
                     "</style></head><body>\n<h1>" + html_text(name) + "</h1>\n" + overview(run, metrics) + "<h2>Curves</h2>\n";
  for (const char* curve : kCurves)
    if (const auto found = metrics.curves.find(curve); found != metrics.curves.end()) html += svg_curve(curve, thinned(found->second, kCurvePoints));
  if (metrics.damaged_lines > 0) html += "<p>" + std::to_string(metrics.damaged_lines) + " lines of metrics.jsonl cannot be read and are left out.</p>\n";
  html += online_curves(run);
  html += "<h2>Evaluations</h2>\n" + evaluated.html;
  if (drawn.count > 0) html += "<h2>Pictures</h2>\n" + drawn.html;
  if (!saved.html.empty()) html += "<h2>Checkpoints</h2>\n" + saved.html;
  html += "<h2>Configuration</h2>\n<pre>" + (config ? html_text(*config) : html_text(config.error().message)) + "</pre>\n</body></html>\n";
  if (const auto parent = fs::path(file).parent_path(); !parent.empty()) TESSERA_TRY(make_folders(parent.string()));
  TESSERA_TRY(write_file_atomic(file, html));
  return Json{{"schema", 1}, {"out", file}, {"bytes", html.size()}, {"steps", metrics.steps}, {"evaluations", evaluated.count}, {"pictures", drawn.count}, {"checkpoints", saved.count}};
}

}  // namespace tessera::evaluate
