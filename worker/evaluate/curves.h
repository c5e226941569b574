// Pieces of an HTML page as text: curves as SVG, bytes as base64, text made safe. Pure.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::evaluate {

using Points = std::vector<std::pair<double, double>>;  // (step, value), ascending steps

// At most `limit` points: the means of equal stretches of the list, so that a long run's page stays small.
Points thinned(const Points& points, size_t limit);
// An <svg> with the curve, its range and its last value in words; "" for fewer than two points.
std::string svg_curve(const std::string& title, const Points& points);
// & < > " ' replaced, for text and attribute values.
std::string html_text(std::string_view text);
// RFC 4648, section 4, with padding.
std::string base64(std::string_view bytes);
// Four significant digits: 0.3943, 1.2e-05.
std::string short_number(double value);

}  // namespace tessera::evaluate
