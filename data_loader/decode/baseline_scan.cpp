#include "data_loader/decode/baseline_scan.h"

#include <bit>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace tessera::data {

const uint8_t kNaturalOrder[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                                   41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                                   30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

namespace {

constexpr uint64_t pack(uint64_t drop, uint64_t first_at, uint64_t second_at, uint64_t advance, int first, int second) {
  return drop | first_at << 8 | second_at << 16 | advance << 24 | uint64_t(uint16_t(first)) << 32 | uint64_t(uint16_t(second)) << 48;
}
constexpr int drop_of(uint64_t entry) { return int(entry & 0xFF); }
constexpr int first_at(uint64_t entry) { return int(entry >> 8 & 0xFF); }
constexpr int second_at(uint64_t entry) { return int(entry >> 16 & 0xFF); }
constexpr int advance_of(uint64_t entry) { return int(entry >> 24 & 0xFF); }
constexpr int16_t first_value(uint64_t entry) { return int16_t(entry >> 32); }
constexpr int16_t second_value(uint64_t entry) { return int16_t(entry >> 48); }

// T.81 F.2.2.1 EXTEND of the `size` (1 to 15) bits of v.
constexpr int extend(int v, int size) { return v < 1 << (size - 1) ? v + 1 - (1 << size) : v; }

// The stream's next bits at the top of `bits`; at least 56 of them valid after refill().
struct Bits {
  const uint8_t* at;
  uint64_t bits;
  int count;
  void refill() {
    uint64_t word;
    std::memcpy(&word, at, 8);
    if constexpr (std::endian::native == std::endian::little) word = __builtin_bswap64(word);
    bits |= word >> count;
    at += (63 - count) >> 3;
    count |= 56;
  }
  void drop(int n) { bits <<= n, count -= n; }
  int take(int n) {  // 1 to 15
    const int value = int(bits >> (64 - n));
    drop(n);
    return value;
  }
};

}  // namespace

void HuffmanDecoder::prepare(const HuffmanSpec& spec, Kind kind) {
  if (made_ && kind_ == kind && spec_ == spec) return;
  spec_ = spec, kind_ = kind, made_ = true;
  fill_codes();
  for (uint32_t i = 0; i < pairs_.size(); ++i) pairs_[i] = one(i, kind);
  if (kind == Kind::kAc) fill_pairs();
}

void HuffmanDecoder::fill_codes() {
  single_.fill(0);
  int code = 0, place = 0;
  for (int length = 1; length <= 16; ++length, code <<= 1) {
    offset_[size_t(length)] = place - code;
    for (int i = 0; i < spec_.bits[size_t(length)] && place < 256; ++i, ++code, ++place) {
      if (length > kLookBits) continue;
      const int spare = kLookBits - length;
      for (int j = 0; j < 1 << spare; ++j) single_[size_t((code << spare | j) & ((1 << kLookBits) - 1))] = uint16_t(length << 8 | spec_.values[size_t(place)]);
    }
    last_code_[size_t(length)] = spec_.bits[size_t(length)] ? code - 1 : -1;
  }
}

HuffmanDecoder::Code HuffmanDecoder::find_long(uint64_t bits) const {
  for (int length = kLookBits + 1; length <= 16; ++length) {
    const int code = int(bits >> (64 - length));
    if (code <= last_code_[size_t(length)]) return {length, spec_.values[size_t((code + offset_[size_t(length)]) & 0xFF)]};
  }
  return {};
}

// The first symbol of the bits of `index`, with its value if that is among them.
uint64_t HuffmanDecoder::one(uint32_t index, Kind kind) const {
  const uint16_t code = single_[index];
  const int length = code >> 8, size = code & 15, run = kind == Kind::kAc ? code >> 4 & 15 : 0;
  if (length == 0) return pack(0, 0, 0, kEscape, 0, 0);
  if (length + size > kLookBits) return pack(uint64_t(length), uint64_t(run), uint64_t(size), kEscape, 0, 0);
  if (size == 0 && kind == Kind::kDc) return pack(uint64_t(length), 0, 0, 0, 0, 0);
  if (size == 0) return pack(uint64_t(length), 0, 0, run == 15 ? 16 : kEnd, 0, 0);  // the zero goes where none was yet
  const int value = extend(int(index >> (kLookBits - length - size)) & ((1 << size) - 1), size);
  return pack(uint64_t(length + size), uint64_t(run), uint64_t(run), uint64_t(run) + 1, value, value);
}

// Joins what follows in the same bits.
void HuffmanDecoder::fill_pairs() {
  const auto firsts = pairs_;
  for (uint32_t i = 0; i < pairs_.size(); ++i) {
    const uint64_t a = firsts[i];
    const int advance = advance_of(a);
    if (advance >= int(kEnd)) continue;
    const uint64_t b = firsts[(i << drop_of(a)) & (pairs_.size() - 1)];
    if (advance_of(b) == int(kEscape) || drop_of(a) + drop_of(b) > kLookBits) continue;
    const bool ends = advance_of(b) == int(kEnd);  // then the first value again
    pairs_[i] = pack(uint64_t(drop_of(a) + drop_of(b)), uint64_t(first_at(a)), uint64_t(ends ? first_at(a) : advance + first_at(b)), uint64_t(advance + advance_of(b)),
                     first_value(a), ends ? first_value(a) : first_value(b));
  }
}

bool BaselineScan::start(const ScanLayout& layout, std::span<const uint8_t> data) {
  layout_ = layout;
  for (size_t i = 0; i < size_t(layout.blocks); ++i) {
    const size_t d = size_t(layout.dc_table[i]), a = size_t(layout.ac_table[i]);
    dc_[d].prepare(layout.dc[d], HuffmanDecoder::Kind::kDc);
    ac_[a].prepare(layout.ac[a], HuffmanDecoder::Kind::kAc);
  }
  raw_ = data.data(), raw_end_ = raw_ + data.size();
  constexpr size_t kKept = size_t{8} << 20;
  if (segment_.size() > kKept) segment_ = {};
  if (segment_.size() < data.size() + kPadding) segment_.resize(data.size() + kPadding + data.size() / 4);
  next_restart_ = 0;
  return load_segment();
}

bool BaselineScan::load_segment() {
  uint8_t* out = segment_.data();
  marker_ = 0;
#if defined(__SSE2__)
  for (const __m128i all = _mm_set1_epi8(-1); raw_ + 17 <= raw_end_ && marker_ == 0;) {
    const __m128i piece = _mm_loadu_si128(reinterpret_cast<const __m128i*>(raw_));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), piece);
    const unsigned found = unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(piece, all)));
    if (found == 0) {
      raw_ += 16, out += 16;
      continue;
    }
    const int at = std::countr_zero(found);
    marker_ = raw_[at + 1];
    raw_ += at + 2, out += at + (marker_ == 0);
  }
#endif
  while (marker_ == 0) {
    const void* found = raw_ < raw_end_ ? std::memchr(raw_, 0xFF, size_t(raw_end_ - raw_)) : nullptr;
    if (!found || static_cast<const uint8_t*>(found) + 1 == raw_end_) return false;
    const auto* ff = static_cast<const uint8_t*>(found);
    std::memcpy(out, raw_, size_t(ff - raw_) + 1);
    marker_ = ff[1];
    out += ff - raw_ + (marker_ == 0);
    raw_ = ff + 2;
  }
  if (marker_ == 0xFF) return false;  // fill bytes: legal, and too rare to think about
  std::memset(out, 0, kPadding);
  segment_bytes_ = size_t(out - segment_.data());
  at_ = segment_.data(), bits_ = 0, bit_count_ = 0;
  mcus_to_restart_ = layout_.restart_interval;
  prediction_.fill(0);
  return true;
}

bool BaselineScan::next(int16_t* const* blocks) {
  if (layout_.restart_interval > 0 && mcus_to_restart_-- == 0) {
    const int64_t left = int64_t(segment_bytes_) * 8 - ((at_ - segment_.data()) * 8 - bit_count_);
    if (left >= 8 || marker_ != 0xD0 + next_restart_ || !load_segment()) return false;
    next_restart_ = (next_restart_ + 1) & 7;
    --mcus_to_restart_;
  }
  return blocks ? mcu<true>(blocks) : mcu<false>(nullptr);
}

namespace {

// One symbol after the other: long codes, large values, the last positions of a block. False: not plainly good.
template <bool kStore>
bool step(Bits& in, const HuffmanDecoder& table, int& k, int16_t* out) {
  in.refill();
  const HuffmanDecoder::Code code = table.find(in.bits);
  if (code.length == 0) return false;
  in.drop(code.length);
  const int run = code.symbol >> 4, size = code.symbol & 15;
  if (size == 0) {
    k = run == 15 ? k + 16 : 64;
    return true;
  }
  k += run;
  if (k > 63) return false;
  const int value = extend(in.take(size), size);
  if constexpr (kStore) out[kNaturalOrder[k]] = int16_t(value);
  ++k;
  return true;
}

template <bool kStore>
inline bool ac_coefficients(Bits& in, const HuffmanDecoder& table, int16_t* out) {
  const auto store = [out](int k, uint64_t entry) {
    if constexpr (kStore) {
      out[kNaturalOrder[k + first_at(entry)]] = first_value(entry);
      out[kNaturalOrder[k + second_at(entry)]] = second_value(entry);
    }
  };
  for (int k = 1; k < 64;) {
    in.refill();
    uint64_t entry = 0;
    int next = 0;
    constexpr int kLookUps = 56 / HuffmanDecoder::kLookBits;  // as many as one refill is sure to feed
#pragma GCC unroll 8
    for (int i = 0; i < kLookUps; ++i) {
      entry = table.entry(in.bits);
      next = k + advance_of(entry);
      if (next > 63) break;
      store(k, entry);
      in.drop(drop_of(entry));
      k = next;
    }
    if (next <= 63) continue;
    const int advance = advance_of(entry);
    if (advance >= int(HuffmanDecoder::kEnd) && advance != int(HuffmanDecoder::kEscape) && next - int(HuffmanDecoder::kEnd) <= 63) {
      store(k, entry);
      in.drop(drop_of(entry));
      return true;
    }
    const int size = second_at(entry);
    if (advance != int(HuffmanDecoder::kEscape) || size == 0) {
      if (!step<kStore>(in, table, k, out)) return false;
      continue;
    }
    in.refill();  // a known code whose value lies beyond the look-up
    in.drop(drop_of(entry));
    k += first_at(entry);
    if (k > 63) return false;
    const int value = extend(in.take(size), size);
    if constexpr (kStore) out[kNaturalOrder[k]] = int16_t(value);
    ++k;
  }
  return true;
}

inline bool dc_difference(Bits& in, const HuffmanDecoder& table, int& value) {
  in.refill();
  const uint64_t entry = table.entry(in.bits);
  if (advance_of(entry) != int(HuffmanDecoder::kEscape)) {
    in.drop(drop_of(entry));
    value = first_value(entry);
    return true;
  }
  const HuffmanDecoder::Code code = table.find(in.bits);
  if (code.length == 0 || code.symbol > 15) return false;
  in.drop(code.length);
  value = code.symbol ? extend(in.take(code.symbol), code.symbol) : 0;
  return true;
}

}  // namespace

template <bool kStore>
bool BaselineScan::mcu(int16_t* const* blocks) {
  Bits in{at_, bits_, bit_count_};
  for (int i = 0; i < layout_.blocks; ++i) {
    int difference = 0;
    if (!dc_difference(in, dc_[size_t(layout_.dc_table[size_t(i)])], difference)) return false;
    const int dc = prediction_[size_t(layout_.component[size_t(i)])] += difference;
    if (dc != int16_t(dc)) return false;
    if constexpr (kStore) blocks[i][0] = int16_t(dc);
    if (!ac_coefficients<kStore>(in, ac_[size_t(layout_.ac_table[size_t(i)])], kStore ? blocks[i] : nullptr)) return false;
  }
  at_ = in.at, bits_ = in.bits, bit_count_ = in.count;
  return (at_ - segment_.data()) * 8 - bit_count_ <= int64_t(segment_bytes_) * 8;
}

}  // namespace tessera::data
