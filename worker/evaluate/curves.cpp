#include "worker/evaluate/curves.h"

#include <algorithm>
#include <boost/archive/iterators/base64_from_binary.hpp>
#include <boost/archive/iterators/transform_width.hpp>
#include <cstdio>

namespace tessera::evaluate {
namespace {

constexpr double kWidth = 720, kHeight = 180, kLeft = 70, kTop = 26, kBottom = 24, kRight = 10;

std::string fixed(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string label(double x, double y, const char* anchor, const std::string& text) {
  return "<text x=\"" + fixed(x) + "\" y=\"" + fixed(y) + "\" text-anchor=\"" + anchor + "\">" + html_text(text) + "</text>";
}

}  // namespace

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

Points thinned(const Points& points, size_t limit) {
  if (points.size() <= limit || limit == 0) return points;
  Points out;
  for (size_t i = 0; i < limit; ++i) {
    const size_t first = i * points.size() / limit, last = (i + 1) * points.size() / limit;
    double step = 0, value = 0;
    for (size_t j = first; j < last; ++j) step += points[j].first, value += points[j].second;
    out.emplace_back(step / double(last - first), value / double(last - first));
  }
  return out;
}

std::string svg_curve(const std::string& title, const Points& points) {
  if (points.size() < 2) return "";
  double low = points[0].second, high = low;
  for (const auto& [step, value] : points) low = std::min(low, value), high = std::max(high, value);
  const double first = points.front().first, last = points.back().first, range = high > low ? high - low : 1, span = last > first ? last - first : 1;
  std::string line;
  for (const auto& [step, value] : points)
    line += fixed(kLeft + (step - first) / span * (kWidth - kLeft - kRight)) + "," + fixed(kTop + (high - value) / range * (kHeight - kTop - kBottom)) + " ";
  const double bottom = kHeight - kBottom;
  return "<svg viewBox=\"0 0 " + fixed(kWidth) + " " + fixed(kHeight) + "\" role=\"img\" aria-label=\"" + html_text(title) + "\">" +
         "<path class=\"axis\" d=\"M" + fixed(kLeft) + " " + fixed(kTop) + "V" + fixed(bottom) + "H" + fixed(kWidth - kRight) + "\"/>" + label(kLeft, 15, "start", title) +
         label(kWidth - kRight, 15, "end", "last " + short_number(points.back().second)) + label(kLeft - 6, kTop + 8, "end", short_number(high)) +
         label(kLeft - 6, bottom, "end", short_number(low)) + label(kLeft, kHeight - 6, "start", "step " + short_number(first)) +
         label(kWidth - kRight, kHeight - 6, "end", short_number(last)) + "<polyline class=\"curve\" points=\"" + line + "\"/></svg>\n";
}

std::string html_text(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string base64(std::string_view bytes) {
  using namespace boost::archive::iterators;
  using Encoder = base64_from_binary<transform_width<const char*, 6, 8>>;
  std::string padded(bytes);
  const size_t missing = (3 - bytes.size() % 3) % 3;
  padded.append(missing, '\0');  // the iterator reads whole groups
  std::string out(Encoder(padded.data()), Encoder(padded.data() + padded.size()));
  std::fill(out.end() - int64_t(missing), out.end(), '=');
  return out;
}

}  // namespace tessera::evaluate
