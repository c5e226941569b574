# The pure parts of the loader: bytes to pixels, crops, masks, order. No sockets, files, clocks or threads.
tessera_library(tessera_pixels
  ${CMAKE_CURRENT_LIST_DIR}/decode/decode.cpp
  ${CMAKE_CURRENT_LIST_DIR}/decode/jpeg.cpp
  ${CMAKE_CURRENT_LIST_DIR}/decode/png.cpp
  ${CMAKE_CURRENT_LIST_DIR}/decode/fingerprint.cpp
  ${CMAKE_CURRENT_LIST_DIR}/transform/crop.cpp
  ${CMAKE_CURRENT_LIST_DIR}/transform/resize.cpp
  ${CMAKE_CURRENT_LIST_DIR}/transform/sample_transform.cpp
  ${CMAKE_CURRENT_LIST_DIR}/masking/multiblock.cpp
  ${CMAKE_CURRENT_LIST_DIR}/masking/group_masks.cpp
  ${CMAKE_CURRENT_LIST_DIR}/order/permutation.cpp
  ${CMAKE_CURRENT_LIST_DIR}/order/order.cpp
  LIBS tessera_common JPEG::JPEG PNG::PNG)
