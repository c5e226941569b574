#include "data_loader/decode/packed_jpeg.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "data_loader/decode/jpeg_handle.h"

namespace tessera::data {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'J', 'P', 'K', '1', '\n'};
constexpr int64_t kFixedBytes = 24;

uint32_t u32_at(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}
void append_u32(std::string& out, int64_t value) {
  for (int shift = 0; shift < 32; shift += 8) out += char(uint32_t(value) >> shift);
}

tl::unexpected<Error> damaged(const std::string& what) { return bad_image("packed JPEG: " + what); }

// ---- packing ----

bool is_narrow(int value) { return value > -128 && value < 128; }

void append_block(std::string& out, const int16_t* block, int16_t& prediction) {
  unsigned rows = 0, of_row[8] = {};
  bool wide = false;
  for (int i = 1; i < 64; ++i) {
    if (block[i] == 0) continue;
    rows |= 1u << (i / 8), of_row[i / 8] |= 1u << (i % 8);
    wide = wide || !is_narrow(block[i]);
  }
  if (wide) rows |= 1, of_row[0] |= 1;
  const auto append_i16 = [&out](int value) { out += char(value & 0xFF), out += char(value >> 8 & 0xFF); };
  const int difference = block[0] - prediction;
  prediction = block[0];
  const bool fits = is_narrow(difference);
  out += char(rows), out += char(fits ? difference : -128);
  if (!fits) append_i16(difference);  // modulo 2^16
  for (int r = 0; r < 8; ++r)
    if (rows >> r & 1) out += char(of_row[r]);
  for (int i = 1; i < 64; ++i) {
    if (block[i] == 0) continue;
    out += char(wide && !is_narrow(block[i]) ? -128 : block[i]);
  }
  for (int i = 1; wide && i < 64; ++i)
    if (!is_narrow(block[i])) append_i16(block[i]);
}

struct Mcu {
  int16_t coefficients[ScanLayout::kMaxBlocks][64];
  int16_t* blocks[ScanLayout::kMaxBlocks];
  Mcu() {
    for (int i = 0; i < ScanLayout::kMaxBlocks; ++i) blocks[i] = coefficients[i];
  }
  void clear() { std::memset(coefficients, 0, sizeof coefficients); }
};

// False: the scan is not plainly good.
bool append_rows(BaselineScan& scan, const ScanLayout& layout, std::string& coefficients, std::vector<int64_t>& starts) {
  Mcu mcu;
  for (int row = 0; row < layout.mcu_rows; ++row) {
    starts.push_back(int64_t(coefficients.size()));
    int16_t prediction[ScanLayout::kMaxComponents] = {};
    for (int column = 0; column < layout.mcus_per_row; ++column) {
      mcu.clear();
      if (!scan.next(mcu.blocks)) return false;
      for (int i = 0; i < layout.blocks; ++i) append_block(coefficients, mcu.blocks[i], prediction[layout.component[size_t(i)]]);
    }
  }
  starts.push_back(int64_t(coefficients.size()));
  return starts.back() <= INT32_MAX;
}

// ---- the original again ----

class ScanWriter {
 public:
  ScanWriter(const ScanLayout& layout, std::string& out) : layout_(layout), out_(out) {
    for (size_t i = 0; i < ScanLayout::kTables; ++i) make_codes(layout.dc[i], dc_[i]), make_codes(layout.ac[i], ac_[i]);
  }
  // False: a symbol that the tables do not have.
  bool write(const int16_t* const* blocks) {
    if (layout_.restart_interval > 0 && written_ > 0 && written_ % layout_.restart_interval == 0) restart();
    ++written_;
    for (int i = 0; i < layout_.blocks && good_; ++i) {
      int& before = prediction_[size_t(layout_.component[size_t(i)])];
      write_dc(dc_[size_t(layout_.dc_table[size_t(i)])], blocks[i][0] - before);
      before = blocks[i][0];
      write_ac(ac_[size_t(layout_.ac_table[size_t(i)])], blocks[i]);
    }
    return good_;
  }
  void finish() {  // whole bytes, filled with ones
    if (count_ > 0) put((1u << (8 - count_)) - 1, 8 - count_);
  }

 private:
  struct Code {
    uint16_t code = 0;
    uint8_t length = 0;
  };
  using Codes = std::array<Code, 256>;

  static void make_codes(const HuffmanSpec& spec, Codes& codes) {
    int code = 0, place = 0;
    for (int length = 1; length <= 16; ++length, code <<= 1)
      for (int i = 0; i < spec.bits[size_t(length)] && place < 256; ++i, ++code, ++place) codes[spec.values[size_t(place)]] = {uint16_t(code), uint8_t(length)};
  }
  void put(uint32_t bits, int length) {  // at most 16
    pending_ = pending_ << length | bits;
    for (count_ += length; count_ >= 8;) {
      count_ -= 8;
      const auto byte = uint8_t(pending_ >> count_);
      out_ += char(byte);
      if (byte == 0xFF) out_ += '\0';
    }
  }
  void put_symbol(const Codes& codes, int symbol, int value, int size) {
    const Code code = codes[size_t(symbol)];
    if (code.length == 0) good_ = false;
    put(code.code, code.length);
    if (size > 0) put(uint32_t(value < 0 ? value - 1 : value) & ((1u << size) - 1), size);
  }
  static int size_of(int value) { return std::bit_width(unsigned(value < 0 ? -value : value)); }
  void write_dc(const Codes& codes, int difference) {
    const int size = size_of(difference);
    if (size > 15) good_ = false;
    else put_symbol(codes, size, difference, size);
  }
  void write_ac(const Codes& codes, const int16_t* block) {
    int run = 0;
    for (int k = 1; k < 64; ++k) {
      const int value = block[kNaturalOrder[k]], size = size_of(value);
      if (value == 0) {
        ++run;
        continue;
      }
      for (; run > 15; run -= 16) put_symbol(codes, 0xF0, 0, 0);
      if (size > 15) good_ = false;
      else put_symbol(codes, run << 4 | size, value, size);
      run = 0;
    }
    if (run > 0) put_symbol(codes, 0, 0, 0);
  }
  void restart() {
    finish();
    out_ += char(0xFF), out_ += char(0xD0 + next_restart_);
    next_restart_ = (next_restart_ + 1) & 7;
    prediction_.fill(0);
  }

  const ScanLayout& layout_;
  std::string& out_;
  std::array<Codes, ScanLayout::kTables> dc_, ac_;
  std::array<int, ScanLayout::kMaxComponents> prediction_{};
  uint64_t pending_ = 0;
  int count_ = 0, next_restart_ = 0;
  int64_t written_ = 0;
  bool good_ = true;
};

}  // namespace

int64_t PackedJpeg::row_start(int row) const { return u32_at(row_starts.data() + int64_t{row} * 4); }

bool is_packed_jpeg(std::span<const uint8_t> bytes) { return bytes.size() >= sizeof kMagic && std::memcmp(bytes.data(), kMagic, sizeof kMagic) == 0; }

Result<PackedJpeg> parse_packed_jpeg(std::span<const uint8_t> bytes) {
  if (!is_packed_jpeg(bytes) || int64_t(bytes.size()) < kFixedBytes) return damaged("cut within its first 24 bytes");
  const int64_t header = u32_at(bytes.data() + 8), tail = u32_at(bytes.data() + 12), rows = u32_at(bytes.data() + 20);
  PackedJpeg out;
  out.original_bytes = u32_at(bytes.data() + 16);
  if (rows < 1 || rows > 8192) return damaged("says " + std::to_string(rows) + " MCU rows, which no JPEG has");
  out.mcu_rows = int(rows);
  const int64_t table = (rows + 1) * 4, fixed = kFixedBytes + table + header + tail, coefficients = int64_t(bytes.size()) - fixed;
  if (coefficients < 0) return damaged("its sections need at least " + std::to_string(fixed) + " bytes, it has " + std::to_string(bytes.size()));
  out.row_starts = bytes.subspan(kFixedBytes, size_t(table));
  out.header = bytes.subspan(size_t(kFixedBytes + table), size_t(header));
  out.tail = bytes.subspan(size_t(kFixedBytes + table + header), size_t(tail));
  out.coefficients = bytes.subspan(size_t(fixed));
  for (int row = 0; row < out.mcu_rows; ++row)
    if (out.row_start(row) > out.row_start(row + 1)) return damaged("MCU row " + std::to_string(row) + " ends before it begins");
  if (out.row_start(0) != 0 || out.row_start(out.mcu_rows) != coefficients) return damaged("its row table does not fit its " + std::to_string(coefficients) + " bytes of coefficients");
  return out;
}

std::optional<std::string> pack_jpeg(std::span<const uint8_t> bytes, const DecodeLimits& limits) {
  if (bytes.size() < 4 || bytes[0] != 0xFF || bytes[1] != 0xD8 || bytes.size() > size_t{INT32_MAX} || !jpeg_decode(bytes, 0, limits)) return std::nullopt;
  Jpeg jpeg(limits);
  if (!open_jpeg(jpeg, bytes, int64_t(bytes.size()), limits) || !start_jpeg(jpeg, JCS_RGB)) return std::nullopt;
  const auto layout = scan_layout(jpeg.info);
  if (!layout) return std::nullopt;
  const size_t header_bytes = bytes.size() - jpeg.info.src->bytes_in_buffer;
  static thread_local BaselineScan scan;
  std::string coefficients;
  std::vector<int64_t> starts;
  if (!scan.start(*layout, bytes.subspan(header_bytes)) || !append_rows(scan, *layout, coefficients, starts)) return std::nullopt;
  const auto tail = scan.rest();
  std::string out(kMagic, sizeof kMagic);
  for (const int64_t value : {int64_t(header_bytes), int64_t(tail.size()), int64_t(bytes.size()), int64_t{layout->mcu_rows}}) append_u32(out, value);
  for (const int64_t start : starts) append_u32(out, start);
  out.append(reinterpret_cast<const char*>(bytes.data()), header_bytes);
  out.append(reinterpret_cast<const char*>(tail.data()), tail.size());
  out += coefficients;
  const auto again = unpack_jpeg({reinterpret_cast<const uint8_t*>(out.data()), out.size()});
  if (!again || again->size() != bytes.size() || std::memcmp(again->data(), bytes.data(), bytes.size()) != 0) return std::nullopt;
  return out;
}

Result<std::string> unpack_jpeg(std::span<const uint8_t> bytes) {
  TESSERA_ASSIGN(const PackedJpeg packed, parse_packed_jpeg(bytes));
  Jpeg jpeg({});
  TESSERA_TRY(open_jpeg(jpeg, packed.header, packed.original_bytes, {}));
  if (!start_jpeg(jpeg, JCS_RGB)) return jpeg.failed();
  const auto layout = scan_layout(jpeg.info);
  static thread_local PackedScan scan;
  if (!layout || !scan.start(*layout, packed)) return damaged("header and coefficients do not fit together");
  std::string out(reinterpret_cast<const char*>(packed.header.data()), packed.header.size());
  out.reserve(size_t(packed.original_bytes) + 16);
  ScanWriter writer(*layout, out);
  Mcu mcu;
  for (int row = 0; row < layout->mcu_rows; ++row) {
    scan.go_to_row(row);
    for (int column = 0; column < layout->mcus_per_row; ++column) {
      mcu.clear();
      if (!scan.next(mcu.blocks)) return damaged("the coefficients of MCU row " + std::to_string(row) + " run over");
      if (!writer.write(mcu.blocks)) return damaged("MCU row " + std::to_string(row) + " has coefficients that the header's Huffman tables cannot code");
    }
  }
  writer.finish();
  out.append(reinterpret_cast<const char*>(packed.tail.data()), packed.tail.size());
  return out;
}

}  // namespace tessera::data
