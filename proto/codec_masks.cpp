#include "proto/codec_masks.h"

#include <optional>
#include <span>

namespace tessera::proto {
namespace {

constexpr int64_t kLargestGrid = 256;  // patch indices have 16 bits
constexpr int64_t kMostPatches = int64_t{1} << 24;

bool is_packable(const MaskShape& s) {
  return s.images > 0 && s.images <= kMostPatches && s.grid >= 1 && s.grid <= kLargestGrid && s.length >= 1 && s.length <= s.grid * s.grid && s.images * s.length <= kMostPatches;
}

bool is_ascending(std::span<const uint16_t> patches, int64_t end) {
  for (size_t i = 1; i < patches.size(); ++i)
    if (patches[i] <= patches[i - 1]) return false;
  return patches.back() < end;
}

// Width of the rectangle that the ascending patches fill; nothing when they are none.
std::optional<int64_t> rectangle_width(std::span<const uint16_t> patches, int64_t grid) {
  int64_t width = 1;
  while (width < int64_t(patches.size()) && patches[size_t(width)] == patches[0] + width) ++width;
  if (patches[0] % grid + width > grid) width = grid - patches[0] % grid;  // a run that goes on in the next row
  if (int64_t(patches.size()) % width != 0) return std::nullopt;
  for (int64_t i = 0; i < int64_t(patches.size()); ++i)
    if (patches[size_t(i)] != patches[0] + i / width * grid + i % width) return std::nullopt;
  return width;
}

bool pack_rectangles(const std::vector<uint16_t>& list, const MaskShape& s, wire::MaskList* out) {
  const auto of_image = [&](int64_t i) { return std::span(list).subspan(size_t(i * s.length), size_t(s.length)); };
  const auto width = rectangle_width(of_image(0), s.grid);
  std::string corners;
  for (int64_t i = 0; i < s.images; ++i) {
    const auto patches = of_image(i);
    if (!width || rectangle_width(patches, s.grid) != width) return false;
    corners += char(patches[0] & 0xFF), corners += char(patches[0] >> 8);
  }
  out->set_height(int32_t(s.length / *width));
  out->set_width(int32_t(*width));
  out->set_corners(std::move(corners));
  return true;
}

std::vector<uint16_t> unpack_rectangles(const wire::MaskList& in, const MaskShape& s) {
  const int64_t height = in.height(), width = in.width();
  if (height < 1 || width < 1 || height > s.grid || width > s.grid || height * width != s.length || int64_t(in.corners().size()) != 2 * s.images) return {};
  std::vector<uint16_t> out;
  out.reserve(size_t(s.images * s.length));
  for (int64_t i = 0; i < s.images; ++i) {
    const auto byte = [&](int64_t b) { return static_cast<unsigned char>(in.corners()[size_t(2 * i + b)]); };
    const int64_t corner = byte(0) | byte(1) << 8;
    if (corner / s.grid + height > s.grid || corner % s.grid + width > s.grid) return {};
    for (int64_t row = 0; row < height; ++row)
      for (int64_t column = 0; column < width; ++column) out.push_back(uint16_t(corner + row * s.grid + column));
  }
  return out;
}

std::vector<uint16_t> unpack_bits(const std::string& bits, const MaskShape& s) {
  const int64_t stride = (s.grid * s.grid + 7) / 8;
  if (int64_t(bits.size()) != s.images * stride) return {};
  std::vector<uint16_t> out;
  out.reserve(size_t(s.images * s.length));
  for (int64_t i = 0; i < s.images; ++i) {
    for (int64_t at = 0; at < stride; ++at)
      for (unsigned rest = static_cast<unsigned char>(bits[size_t(i * stride + at)]); rest != 0; rest &= rest - 1) {
        const int64_t patch = 8 * at + __builtin_ctz(rest);
        if (patch >= s.grid * s.grid) return {};
        out.push_back(uint16_t(patch));
      }
    if (int64_t(out.size()) != (i + 1) * s.length) return {};
  }
  return out;
}

}  // namespace

void pack_mask(const std::vector<uint16_t>& list, const MaskShape& s, wire::MaskList* out) {
  bool sets = is_packable(s) && int64_t(list.size()) == s.images * s.length;
  for (int64_t i = 0; sets && i < s.images; ++i) sets = is_ascending(std::span(list).subspan(size_t(i * s.length), size_t(s.length)), s.grid * s.grid);
  if (!sets) return void(out->mutable_patches()->Add(list.begin(), list.end()));
  if (pack_rectangles(list, s, out)) return;
  const int64_t stride = (s.grid * s.grid + 7) / 8;
  std::string bits(size_t(s.images * stride), '\0');
  for (int64_t i = 0; i < s.images * s.length; ++i) {
    const uint16_t patch = list[size_t(i)];
    bits[size_t(i / s.length * stride + patch / 8)] |= char(1 << patch % 8);
  }
  out->set_bits(std::move(bits));
}

std::vector<uint16_t> unpack_mask(const wire::MaskList& in, const MaskShape& s) {
  if (in.corners().empty() && in.bits().empty()) return {in.patches().begin(), in.patches().end()};
  if (!is_packable(s)) return {};
  return in.corners().empty() ? unpack_bits(in.bits(), s) : unpack_rectangles(in, s);
}

}  // namespace tessera::proto
