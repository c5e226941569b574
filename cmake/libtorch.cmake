# LibTorch and, where wanted, CUDA and NCCL, as imported targets of our own: find_package(Torch) wants a GPU toolchain.
#   tessera_torch       CPU: libtorch_cpu, libc10
#   tessera_cuda        CUDA runtime, libtorch_cuda, NCCL (only when TESSERA_WITH_CUDA)
# The wheel ships old protobuf and fmt headers: -idirafter lets Debian's win (facts: platform).
if(DEFINED ENV{TESSERA_LIBTORCH} AND NOT "$ENV{TESSERA_LIBTORCH}" STREQUAL "")
  set(torch_dir $ENV{TESSERA_LIBTORCH})
else()
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/ops/setup --print OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT EXISTS ${torch_dir}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "no LibTorch at '${torch_dir}': run ops/setup, or set TESSERA_LIBTORCH to the folder holding include/ and lib/")
endif()
set(tessera_libtorch_wanted 2.11.0)
set(version_header ${torch_dir}/include/torch/headeronly/version.h)
if(NOT EXISTS ${version_header})
  set(version_header ${torch_dir}/include/torch/csrc/api/include/torch/version.h)
endif()
set(TESSERA_LIBTORCH_VERSION "")
foreach(part MAJOR MINOR PATCH)
  file(STRINGS ${version_header} line REGEX "^#define TORCH_VERSION_${part} +[0-9]+")
  string(REGEX MATCH "[0-9]+$" number "${line}")
  list(APPEND TESSERA_LIBTORCH_VERSION "${number}")
endforeach()
string(REPLACE ";" "." TESSERA_LIBTORCH_VERSION "${TESSERA_LIBTORCH_VERSION}")
if(NOT TESSERA_LIBTORCH_VERSION STREQUAL tessera_libtorch_wanted)
  message(FATAL_ERROR "LibTorch at ${torch_dir} is version '${TESSERA_LIBTORCH_VERSION}'; Tessera needs ${tessera_libtorch_wanted}: "
                      "unset TESSERA_LIBTORCH and run ops/setup, or point it at ${tessera_libtorch_wanted}")
endif()

add_library(tessera_torch INTERFACE)
target_compile_options(tessera_torch INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${torch_dir}/include>"
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${torch_dir}/include/torch/csrc/api/include>"
  $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)  # at::parallel_for is a template of the header, and serial without it
# Its threads are LibTorch's: the runtime that it brings, never a second one.
file(GLOB torch_openmp ${torch_dir}/lib/libgomp*.so*)
if(NOT torch_openmp)
  set(torch_openmp gomp)
endif()
target_link_libraries(tessera_torch INTERFACE -Wl,--no-as-needed ${torch_dir}/lib/libtorch_cpu.so ${torch_dir}/lib/libc10.so ${torch_openmp})
target_link_options(tessera_torch INTERFACE -Wl,-rpath,${torch_dir}/lib -Wl,--disable-new-dtags)

set(TESSERA_WITH_CUDA OFF)
set(nvidia_dir ${torch_dir}/../nvidia)
set(nccl_lib ${nvidia_dir}/nccl/lib/libnccl.so.2)
set(cudart_lib ${nvidia_dir}/cu13/lib/libcudart.so.13)
if(NOT TESSERA_CUDA STREQUAL "off")
  if(EXISTS ${nccl_lib} AND EXISTS ${cudart_lib} AND EXISTS ${torch_dir}/lib/libtorch_cuda.so)
    find_program(TESSERA_NVCC nvcc HINTS ${nvidia_dir}/cu13/bin)
    if(TESSERA_NVCC)
      set(CMAKE_CUDA_COMPILER ${TESSERA_NVCC})
      if(TESSERA_NVCC MATCHES "cu13/bin/nvcc$")
        set(CMAKE_CUDA_FLAGS "-L${nvidia_dir}/cu13/lib")
      endif()
      if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80-real 90)  # and PTX for what comes after
      endif()
      include(CheckLanguage)
      check_language(CUDA)
      if(CMAKE_CUDA_COMPILER)
        enable_language(CUDA)
        set(TESSERA_WITH_CUDA ON)
      endif()
    endif()
  endif()
  if(TESSERA_CUDA STREQUAL "on" AND NOT TESSERA_WITH_CUDA)
    message(FATAL_ERROR "TESSERA_CUDA=on, but there is no working nvcc, or LibTorch at ${torch_dir} has no CUDA part")
  endif()
endif()
if(TESSERA_WITH_CUDA)
  add_library(tessera_cuda INTERFACE)
  target_compile_options(tessera_cuda INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${nvidia_dir}/cu13/include>"
    "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${nvidia_dir}/cu13/include/cccl>"
    "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${nvidia_dir}/nccl/include>")
  target_link_libraries(tessera_cuda INTERFACE tessera_torch -Wl,--no-as-needed ${torch_dir}/lib/libtorch.so
    ${torch_dir}/lib/libtorch_cuda.so ${torch_dir}/lib/libc10_cuda.so ${nccl_lib} ${cudart_lib})
  target_link_options(tessera_cuda INTERFACE -Wl,-rpath,${nvidia_dir}/nccl/lib -Wl,-rpath,${nvidia_dir}/cu13/lib)
endif()
message(STATUS "LibTorch ${TESSERA_LIBTORCH_VERSION} at ${torch_dir}; CUDA and NCCL code: ${TESSERA_WITH_CUDA}")
