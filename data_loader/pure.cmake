# The pure parts of the loader: bytes to pixels, crops, masks, order. No sockets, files or threads.
tessera_library(tessera_pixels
  decode/decode.cpp decode/jpeg.cpp decode/png.cpp decode/fingerprint.cpp
  transform/resize.cpp transform/resize_avx2.cpp transform/sample_transform.cpp
  masking/masking.cpp order/order.cpp
  LIBS tessera_common tessera_proto JPEG::JPEG PNG::PNG)
set_source_files_properties(transform/resize.cpp transform/resize_avx2.cpp PROPERTIES COMPILE_OPTIONS "-O3")
