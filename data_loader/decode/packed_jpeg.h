// A baseline JPEG with its entropy coding taken off: the same quantised coefficients, laid out so that a window can be
// decoded from its first MCU row on, without a Huffman code. Lossless: the original file is rebuilt byte for byte (what
// cannot be is not packed). docs/repacked-shards.md explains the layout with a worked example.
//
// File, little-endian:
//   0   "TSRJPK1\n"                      8   u32 bytes of the header section
//   12  u32 bytes of the tail section    16  u32 bytes of the original file
//   20  u32 MCU rows (r)                 24  u32 row starts [r + 1], from the beginning of the coefficients; the last: their size
//   then: header (the original from SOI to the end of SOS) | tail (from the marker that ends the scan) | coefficients
//
// Coefficients: MCUs as in the scan. A block:
//   u8   rows of the 8 x 8 block (natural order, bit 0: the top row) that are not all zero
//   i8   DC minus the DC of the component's block before it in this MCU row (the first: minus 0); -128: an i16 follows instead
//   u8   per such row: which of its eight coefficients are not zero. In the top row bit 0 (the DC's place) means: wide
//   i8   per coefficient that is not zero, in natural order; in a wide block -128 stands for one that is
//   i16  per -128 of a wide block
// Tests: tests/unit/data_loader/packed_jpeg_test.cpp
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "common/result.h"
#include "data_loader/decode/baseline_scan.h"
#include "data_loader/decode/decode.h"

struct jpeg_decompress_struct;

namespace tessera::data {

struct PackedJpeg {  // views into the file
  std::span<const uint8_t> header, tail, row_starts, coefficients;
  int64_t original_bytes = 0;
  int mcu_rows = 0;
  int64_t row_start(int row) const;
};

// What the header says about a scan that BaselineScan and PackedScan can do; after jpeg_start_decompress. nullopt: progressive, arithmetic,
// several scans, CMYK, unusual sub-sampling.
std::optional<ScanLayout> scan_layout(const jpeg_decompress_struct& info);

bool is_packed_jpeg(std::span<const uint8_t> bytes);
// Sections that lie inside the file, row starts that ascend. Error: kFixData.
Result<PackedJpeg> parse_packed_jpeg(std::span<const uint8_t> bytes);

// nullopt: this image stays as it is (no baseline JPEG, damaged, or its coding is not the one that unpack_jpeg would write).
std::optional<std::string> pack_jpeg(std::span<const uint8_t> jpeg, const DecodeLimits& limits = {});
// The original file. Error: kFixData.
Result<std::string> unpack_jpeg(std::span<const uint8_t> bytes);

enum class PackedCode { kBest, kScalar, kAvx2, kAvx512 };  // kBest: what this CPU can; tests choose the others
bool packed_code_available(PackedCode code);

// Reads MCUs of a packed JPEG. Never reads outside its coefficients, whatever their bytes.
class PackedScan {
 public:
  // False: header and table do not fit together. `packed` must outlive the use.
  bool start(const ScanLayout& layout, const PackedJpeg& packed, PackedCode code = PackedCode::kBest);
  void go_to_row(int row);  // in [0, mcu_rows)
  // The next MCU of the row: layout.blocks pointers to 64 zeroed coefficients; nullptr passes over it. False: it runs over the row's end.
  bool next(int16_t* const* blocks);

  // Of the vector code too: one MCU (at most 6 x 200 bytes); less than kSlack bytes are looked at. Returns where the next begins.
  static constexpr int64_t kSlack = 2048;
  using McuCode = const uint8_t* (*)(const uint8_t* at, int blocks, const int* component, int16_t* prediction, int16_t* const* out);

 private:
  ScanLayout layout_;
  PackedJpeg packed_;
  McuCode code_ = nullptr;
  int64_t at_ = 0, row_end_ = 0, tail_from_ = 0;
  std::array<int16_t, ScanLayout::kMaxComponents> prediction_{};
  std::array<uint8_t, 2 * kSlack> tail_{};  // the last bytes, and zeros behind them
};

}  // namespace tessera::data
