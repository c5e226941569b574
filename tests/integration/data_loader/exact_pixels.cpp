// Reads lines "INDEX TOP LEFT HEIGHT WIDTH" (a crop of file INDEX of those named as arguments) and prints, for the bilinear
// and the bicubic filter, the SHA-1 of the crop at 224 x 224. Decodes with the library alone, with our entropy decoder and
// from the packed form, and resizes with every code path of this CPU; where two ways differ it prints "DIFFERS" and which.
// test_exact_pixels.py compares with Pillow.
#include <openssl/evp.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "data_loader/decode/codecs.h"
#include "data_loader/decode/packed_jpeg.h"
#include "data_loader/transform/resize.h"

namespace {

using namespace tessera;
using namespace tessera::data;
using Bytes = std::vector<uint8_t>;
constexpr int kSize = 224;

struct File {
  Bytes plain, packed;  // packed: empty if it is not packed
  bool is_jpeg = false;
};

File load(const char* path) {
  std::ifstream in(path, std::ios::binary);
  File out;
  out.plain.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  out.is_jpeg = out.plain.size() > 2 && out.plain[0] == 0xFF;
  if (const auto packed = pack_jpeg(out.plain)) out.packed.assign(packed->begin(), packed->end());
  return out;
}

bool same_pixels(const WindowImage& a, const WindowImage& b, const PixelWindow& w) {
  for (int y = w.top; y < w.top + w.height; ++y)
    for (int x = w.left; x < w.left + w.width; ++x)
      if (std::memcmp(a.pixel(y, x), b.pixel(y, x), 3) != 0) return false;
  return true;
}

std::string sha1(const Bytes& bytes) {
  unsigned char digest[20];
  EVP_Digest(bytes.data(), bytes.size(), digest, nullptr, EVP_sha1(), nullptr);
  std::string text;
  for (const unsigned char byte : digest) text += "0123456789abcdef"[byte >> 4], text += "0123456789abcdef"[byte & 15];
  return text;
}

// All ways to the window; empty, or what differs.
std::string decode_all_ways(const File& file, const PixelWindow& w, WindowImage& out) {
  static WindowImage other;
  if (const Status status = decode_window(file.plain, w, out); !status) return status.error().message;
  if (file.is_jpeg && (!jpeg_decode_window(file.plain, w, other, {}, EntropyCode::kLibrary) || !same_pixels(out, other, w))) return "entropy decoders";
  if (!file.packed.empty() && (!decode_window(file.packed, w, other) || !same_pixels(out, other, w))) return "packed form";
  return "";
}

std::string resize_all_ways(const WindowImage& window, const proto::CropBox& box, Filter filter, Bytes& out) {
  static ResizeScratch scratch[4];
  Bytes other(out.size());
  const uint8_t* pixels = window.pixel(box.top, box.left);
  crop_resize_rgbx(pixels, window.row_bytes, box, kSize, filter, out.data(), scratch[0]);
  for (const ResizeCode code : {ResizeCode::kScalar, ResizeCode::kAvx2, ResizeCode::kAvx512}) {
    if (!resize_code_available(code)) continue;
    crop_resize_rgbx(pixels, window.row_bytes, box, kSize, filter, other.data(), scratch[int(code)], code);
    if (other != out) return "resize code " + std::to_string(int(code));
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<File> files;
  for (int i = 1; i < argc; ++i) files.push_back(load(argv[i]));
  int index;
  proto::CropBox box{};
  WindowImage window;
  Bytes out(kSize * kSize * 3);
  while (std::scanf("%d %d %d %d %d", &index, &box.top, &box.left, &box.height, &box.width) == 5) {
    std::string line, wrong = decode_all_ways(files.at(size_t(index)), {box.top, box.left, box.height, box.width}, window);
    for (const Filter filter : {Filter::kBilinear, Filter::kBicubic}) {
      if (wrong.empty()) wrong = resize_all_ways(window, box, filter, out);
      line += sha1(out) + " ";
    }
    std::printf("%s%s\n", wrong.empty() ? "" : ("DIFFERS " + wrong + " ").c_str(), line.c_str());
    std::fflush(stdout);
  }
  return 0;
}
