# The pure parts of the loader: bytes to pixels, crops, masks, order. No sockets, files or threads.
tessera_library(tessera_pixels
  decode/decode.cpp decode/jpeg.cpp decode/jpeg_window.cpp decode/baseline_scan.cpp decode/packed_jpeg.cpp decode/packed_scan.cpp decode/png.cpp decode/fingerprint.cpp
  transform/resize.cpp transform/resize_avx2.cpp transform/resize_avx512.cpp transform/sample_transform.cpp
  masking/masking.cpp order/order.cpp
  LIBS tessera_common tessera_proto JPEG::JPEG PNG::PNG)
set_source_files_properties(transform/resize.cpp transform/resize_avx2.cpp masking/masking.cpp PROPERTIES COMPILE_OPTIONS "-O3")
# GCC 12 takes the "undefined" operands of its own AVX-512 intrinsics for a mistake (its bug 105593).
set_source_files_properties(decode/packed_scan.cpp transform/resize_avx512.cpp PROPERTIES COMPILE_OPTIONS "-O3;-Wno-maybe-uninitialized;-Wno-uninitialized")
