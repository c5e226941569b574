// Windows of JPEGs. The seam: libjpeg-turbo undoes the DCT, up-samples and converts colours, but for baseline scans the
// coefficients come from our own decoder. `jpeg_decompress_struct::entropy` points to a structure that begins
//   start_pass, decode_mcu, insufficient_data
// (jpegint.h, unchanged from libjpeg 6b to libjpeg-turbo 3); decode_mcu is replaced after jpeg_start_decompress. Whether
// that holds for the library at hand is found out once a process: the two pointers must lie in libjpeg's own object, and a
// built-in image must come out the same both ways. Else the library decodes alone.
#include <dlfcn.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <optional>
#include <utility>

#include "data_loader/decode/baseline_scan.h"
#include "data_loader/decode/jpeg_handle.h"
#include "data_loader/decode/packed_jpeg.h"

namespace tessera::data {
namespace {

struct EntropyDecoder {
  void (*start_pass)(j_decompress_ptr);
  boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW*);
  boolean insufficient_data;
};
EntropyDecoder* entropy_of(j_decompress_ptr info) { return reinterpret_cast<EntropyDecoder*>(info->entropy); }

bool lies_in_libjpeg(const void* function) {
  Dl_info wanted{}, found{};
  return dladdr(reinterpret_cast<const void*>(&jpeg_start_decompress), &wanted) != 0 && dladdr(function, &found) != 0 && wanted.dli_fbase == found.dli_fbase;
}
bool seam_looks_right(j_decompress_ptr info) {
  const EntropyDecoder* entropy = entropy_of(info);
  return entropy && lies_in_libjpeg(reinterpret_cast<const void*>(entropy->start_pass)) && lies_in_libjpeg(reinterpret_cast<const void*>(entropy->decode_mcu)) && !entropy->insufficient_data;
}

// What decode_mcu needs; found through client_data.
struct Feed {
  BaselineScan* scan = nullptr;
  PackedScan* packed = nullptr;
  int columns = 0;      // MCUs of a row
  int first = 0, last = 0;  // columns that are wanted
  int column = 0, row = 0;
  bool failed = false;

  bool wanted() const { return column >= first && column <= last; }
  void advance() {
    if (++column == columns) column = 0, ++row;
  }
};

boolean stop(j_decompress_ptr info, Feed* feed) {
  feed->failed = true;
  longjmp(reinterpret_cast<JpegError*>(info->err)->jump, 1);
}

boolean feed_scan(j_decompress_ptr info, JBLOCKROW* blocks) {
  auto* feed = static_cast<Feed*>(info->client_data);
  const bool store = blocks && feed->wanted();
  if (!feed->scan->next(store ? reinterpret_cast<int16_t* const*>(blocks) : nullptr)) return stop(info, feed);
  feed->advance();
  return TRUE;
}

boolean feed_packed(j_decompress_ptr info, JBLOCKROW* blocks) {
  auto* feed = static_cast<Feed*>(info->client_data);
  if (blocks && feed->column <= feed->last) {  // rows above the window and columns right of it cost nothing
    if (feed->column == 0) feed->packed->go_to_row(feed->row);
    if (!feed->packed->next(feed->wanted() ? reinterpret_cast<int16_t* const*>(blocks) : nullptr)) return stop(info, feed);
  }
  feed->advance();
  return TRUE;
}

// Goes to row `top`, with columns [*left, *left + *width) or a few more, which it writes back.
bool narrow(Jpeg& jpeg, JDIMENSION top, JDIMENSION* left, JDIMENSION* width, Feed* feed) {
  if (setjmp(jpeg.error.jump)) return false;
  jpeg_crop_scanline(&jpeg.info, left, width);
  const int mcu_width = int(jpeg.info.max_h_samp_factor) * DCTSIZE;
  feed->first = int(*left) / mcu_width;
  feed->last = int(*left + *width + JDIMENSION(mcu_width) - 1) / mcu_width - 1;
  if (top > 0 && jpeg_skip_scanlines(&jpeg.info, top) != top) return false;
  return !jpeg.error.warned;
}

// libjpeg-turbo's partial decoding is trusted for the usual layouts only; others are decoded whole.
bool may_narrow(const jpeg_decompress_struct& info) {
  if (jpeg_has_multiple_scans(const_cast<j_decompress_ptr>(&info)) || info.progressive_mode) return false;
  const jpeg_component_info* c = info.comp_info;
  if (info.num_components == 1) return c[0].h_samp_factor == 1 && c[0].v_samp_factor == 1;
  if (info.num_components != 3) return false;
  for (int i = 1; i < 3; ++i)
    if (c[i].h_samp_factor != 1 || c[i].v_samp_factor != 1) return false;
  return c[0].h_samp_factor <= 2 && c[0].v_samp_factor <= 2;
}

bool copy_table(const JHUFF_TBL* from, HuffmanSpec& to) {
  if (!from) return false;
  std::copy(std::begin(from->bits), std::end(from->bits), to.bits.begin());
  std::copy(std::begin(from->huffval), std::end(from->huffval), to.values.begin());
  return true;
}

thread_local BaselineScan thread_scan;
thread_local PackedScan thread_packed;
thread_local int64_t thread_own_windows = 0;

// Decodes with coefficients from `feed`, or the library's own when it has no source.
Status decode_started(Jpeg& jpeg, const PixelWindow& window, Feed& feed, WindowImage& out) {
  const ImageSize full = jpeg.size();
  const int bottom = window.top + window.height;
  PixelWindow decoded{0, 0, bottom, full.width};
  if (may_narrow(jpeg.info)) {
    // Fancy up-sampling reads one pixel beyond each edge; with fewer than three chroma columns it is not used at all.
    constexpr int kMinWidth = 16;
    const int left = std::max(0, std::min(window.left - 1, full.width - kMinWidth));
    const int right = std::min(full.width, std::max(window.left + window.width + 1, left + kMinWidth));
    JDIMENSION at = JDIMENSION(left), width = JDIMENSION(right - left);
    const int top = std::max(0, window.top - 1);
    if (!narrow(jpeg, JDIMENSION(top), &at, &width, &feed)) return jpeg.failed();
    decoded = {top, int(at), bottom - top, int(width)};
  }
  reserve_window(out, full, decoded);
  if (!read_rows(jpeg, out.rgbx.data(), out.row_bytes, decoded.height)) return jpeg.failed();
  if (jpeg.info.out_color_space == JCS_CMYK) cmyk_to_rgb(out.rgbx.data(), decoded.width * decoded.height, 4, out.rgbx.data());
  return {};
}

void plug_in(Jpeg& jpeg, Feed& feed) {
  feed.columns = int(jpeg.info.MCUs_per_row);
  jpeg.info.client_data = &feed;
  entropy_of(&jpeg.info)->decode_mcu = feed.packed ? feed_packed : feed_scan;
  ++thread_own_windows;
}

// retry: the image is not plainly good; the library shall decide.
Status decode_once(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits, bool own, bool* retry) {
  Jpeg jpeg(limits);
  TESSERA_TRY(open_jpeg(jpeg, bytes, int64_t(bytes.size()), limits));
  TESSERA_TRY(check_window(window, jpeg.size()));
  if (!start_jpeg(jpeg, JCS_EXT_RGBX)) return jpeg.failed();
  Feed feed;
  if (own) {
    const auto layout = scan_layout(jpeg.info);
    const jpeg_source_mgr& source = *jpeg.info.src;
    if (layout && seam_looks_right(&jpeg.info)) {
      feed.scan = &thread_scan;
      if (!thread_scan.start(*layout, {source.next_input_byte, source.bytes_in_buffer})) {
        *retry = true;
        return {};
      }
      plug_in(jpeg, feed);
    }
  }
  const Status status = decode_started(jpeg, window, feed, out);
  *retry = feed.failed;
  return status;
}

Status decode_packed_once(const PackedJpeg& packed, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits) {
  Jpeg jpeg(limits);
  TESSERA_TRY(open_jpeg(jpeg, packed.header, packed.original_bytes, limits));
  TESSERA_TRY(check_window(window, jpeg.size()));
  if (!start_jpeg(jpeg, JCS_EXT_RGBX)) return jpeg.failed();
  const auto layout = scan_layout(jpeg.info);
  Feed feed;
  feed.packed = &thread_packed;
  if (!layout || !thread_packed.start(*layout, packed)) return bad_image("packed JPEG: header and coefficients do not fit together");
  plug_in(jpeg, feed);
  const Status status = decode_started(jpeg, window, feed, out);
  if (feed.failed) return bad_image("packed JPEG: the coefficients of MCU row " + std::to_string(feed.row) + " run over");
  return status;
}

// Both ways of decoding a built-in image, once a process.
bool seam_holds() {
  static const bool holds = [] {
    const auto probe = probe_jpeg();
    WindowImage plain, own;
    bool retry = false;
    const PixelWindow window{2, 3, 17, 21};
    const auto before = thread_own_windows;
    {
      Jpeg jpeg({});
      if (!open_jpeg(jpeg, probe, int64_t(probe.size()), {}) || !start_jpeg(jpeg, JCS_EXT_RGBX) || !seam_looks_right(&jpeg.info)) return false;
    }
    const bool decoded = decode_once(probe, window, plain, {}, false, &retry) && decode_once(probe, window, own, {}, true, &retry) && !retry;
    const bool used = std::exchange(thread_own_windows, before) != before;
    if (!decoded || !used) return false;
    const size_t bytes = size_t(plain.row_bytes) * size_t(plain.decoded.height);
    return plain.decoded == own.decoded && std::memcmp(plain.rgbx.data(), own.rgbx.data(), bytes) == 0;
  }();
  return holds;
}

}  // namespace

std::optional<ScanLayout> scan_layout(const jpeg_decompress_struct& info) {
  if (!may_narrow(info) || info.arith_code || info.data_precision != 8 || info.comps_in_scan != info.num_components || info.blocks_in_MCU > ScanLayout::kMaxBlocks) return std::nullopt;
  ScanLayout out;
  out.restart_interval = int(info.restart_interval), out.blocks = info.blocks_in_MCU;
  out.mcus_per_row = int(info.MCUs_per_row), out.mcu_rows = int(info.MCU_rows_in_scan);
  out.mcu_width = info.max_h_samp_factor * DCTSIZE;
  for (int i = 0; i < out.blocks; ++i) {
    const int c = info.MCU_membership[i];
    const jpeg_component_info& component = *info.cur_comp_info[c];
    const int dc = component.dc_tbl_no, ac = component.ac_tbl_no;
    if (dc < 0 || dc >= NUM_HUFF_TBLS || ac < 0 || ac >= NUM_HUFF_TBLS) return std::nullopt;
    out.component[size_t(i)] = c, out.dc_table[size_t(i)] = dc, out.ac_table[size_t(i)] = ac;
    if (!copy_table(info.dc_huff_tbl_ptrs[dc], out.dc[size_t(dc)]) || !copy_table(info.ac_huff_tbl_ptrs[ac], out.ac[size_t(ac)])) return std::nullopt;
  }
  return out;
}

Status jpeg_decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits, EntropyCode code) {
  bool retry = false;
  if (code == EntropyCode::kBest && seam_holds()) {
    const Status status = decode_once(bytes, window, out, limits, true, &retry);
    if (!retry) return status;
  }
  return decode_once(bytes, window, out, limits, false, &retry);
}

Status packed_decode_window(std::span<const uint8_t> bytes, const PixelWindow& window, WindowImage& out, const DecodeLimits& limits, EntropyCode code) {
  TESSERA_ASSIGN(const PackedJpeg packed, parse_packed_jpeg(bytes));
  if (code == EntropyCode::kBest && seam_holds()) return decode_packed_once(packed, window, out, limits);
  TESSERA_ASSIGN(const std::string original, unpack_jpeg(bytes));
  return jpeg_decode_window({reinterpret_cast<const uint8_t*>(original.data()), original.size()}, window, out, limits, EntropyCode::kLibrary);
}

int64_t own_entropy_windows() { return thread_own_windows; }

}  // namespace tessera::data
