// Huffman decoding of a baseline JPEG scan, faster than the library's: two coefficients per table look-up where the codes
// are short, on data whose stuffed zero bytes were taken out before. It decodes what is plainly good and gives up on all
// else (false): the caller then starts again with the library, whose verdict counts. So damaged files have the same
// outcome with and without it. Never reads outside the scan, whatever its bytes.
// Source: ITU-T T.81, annex F.2. Tests: tests/unit/data_loader/fast_jpeg_test.cpp, decode_fuzz_test.cpp
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace tessera::data {

// A Huffman table as a DHT segment has it; the code must have been found valid (no length overfull).
struct HuffmanSpec {
  std::array<uint8_t, 17> bits{};     // codes of each length; [0] unused
  std::array<uint8_t, 256> values{};  // symbols in order of their codes
  bool operator==(const HuffmanSpec&) const = default;
};

// Natural position of the k-th coefficient in zigzag order.
extern const uint8_t kNaturalOrder[64];

// Codes of up to 16 bits; look-up by the first kLookBits.
class HuffmanDecoder {
 public:
  static constexpr int kLookBits = 10;
  enum class Kind { kDc, kAc };
  // Keeps its tables when `spec` is what they were made of.
  void prepare(const HuffmanSpec& spec, Kind kind);

  struct Code {
    int length = 0;  // 0: no such code
    int symbol = 0;
  };
  Code find(uint64_t bits) const {  // the code at the top of `bits`
    const uint16_t entry = single_[bits >> (64 - kLookBits)];
    return entry ? Code{entry >> 8, entry & 0xFF} : find_long(bits);
  }
  // What to do with the next bits (for AC, from position k on): bits 0-7 bits to drop, 8-15 and 16-23 where the two values
  // go (relative to k), 24-31 what to add to k, 32-47 and 48-63 the values. An entry of one value has it twice. kEnd added to the advance:
  // the block ends after it; kEscape: the value is not in this table (then the second place is its size, 0: nor is the code). DC: the first value
  // is the difference.
  static constexpr uint64_t kEnd = 64, kEscape = 255;
  uint64_t entry(uint64_t bits) const { return pairs_[bits >> (64 - kLookBits)]; }

 private:
  Code find_long(uint64_t bits) const;
  void fill_codes();
  void fill_pairs();
  uint64_t one(uint32_t index, Kind kind) const;

  HuffmanSpec spec_;
  Kind kind_ = Kind::kDc;
  bool made_ = false;
  std::array<int32_t, 18> last_code_{};  // of each length, -1: none
  std::array<int32_t, 17> offset_{};     // symbol's place minus code
  std::array<uint16_t, 1 << kLookBits> single_{};
  std::array<uint64_t, 1 << kLookBits> pairs_{};
};

// What a baseline scan is made of.
struct ScanLayout {
  static constexpr int kMaxComponents = 3, kMaxBlocks = 6, kTables = 4;
  int restart_interval = 0;  // in MCUs, 0: none
  int blocks = 0;            // of an MCU
  int mcus_per_row = 0, mcu_rows = 0;
  int mcu_width = 0;         // in pixels
  std::array<int, kMaxBlocks> component{}, dc_table{}, ac_table{};  // of each block of an MCU
  std::array<HuffmanSpec, kTables> dc{}, ac{};
};

// A thread keeps one from image to image: tables and memory are reused.
class BaselineScan {
 public:
  // data: from the first byte after the SOS segment to the end of the file. False: the scan is not ended by a marker.
  bool start(const ScanLayout& layout, std::span<const uint8_t> data);
  // The next MCU. blocks: layout.blocks pointers to 64 zeroed coefficients each, filled in natural order; nullptr passes over
  // the MCU. False: not plainly good.
  bool next(int16_t* const* blocks);
  // After the last MCU: the bytes from the marker that ended the scan to the end of the file.
  std::span<const uint8_t> rest() const { return {raw_ - 2, raw_end_}; }

 private:
  static constexpr size_t kPadding = 4096;  // more than the bits of an MCU: 6 x 64 x 31 bits
  bool load_segment();
  template <bool kStore>
  bool mcu(int16_t* const* blocks);

  ScanLayout layout_;
  std::array<HuffmanDecoder, ScanLayout::kTables> dc_, ac_;
  std::vector<uint8_t> segment_;  // without stuffing, and kPadding zero bytes
  const uint8_t* raw_ = nullptr;  // not yet loaded
  const uint8_t* raw_end_ = nullptr;
  size_t segment_bytes_ = 0;
  int marker_ = 0;  // that ended the segment
  int next_restart_ = 0, mcus_to_restart_ = 0;
  std::array<int, ScanLayout::kMaxComponents> prediction_{};
  const uint8_t* at_ = nullptr;
  uint64_t bits_ = 0;
  int bit_count_ = 0;
};

}  // namespace tessera::data
