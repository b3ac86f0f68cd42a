# find_package(apem_fast CONFIG): of an installed package (CMAKE_PREFIX_PATH from `apem_fast.cmake_prefix()`) or of
# `cmake --install`, which lie alike: include/, lib/ and lib/cmake/apem_fast/.
#
#   apem_fast::apem_fast  the operators, for the CPU: what a program links to
#   apem_fast::cuda       the kernels for tensors on a GPU, where there are some for the CUDA version of torch
#
# torch is found by find_package(Torch) if that came first, else in TORCH_ROOT, else by asking python3.
get_filename_component(_apem_fast_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT TARGET torch_cpu)
  if(NOT TORCH_ROOT)
    execute_process(COMMAND python3 -c "import torch; print(torch.__path__[0])" OUTPUT_VARIABLE TORCH_ROOT
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT EXISTS "${TORCH_ROOT}/include/torch/csrc/stable/library.h")
    set(apem_fast_FOUND FALSE)
    set(apem_fast_NOT_FOUND_MESSAGE
        "TORCH_ROOT must be the folder of torch 2.11 or newer, or find_package(Torch) come first (got \"${TORCH_ROOT}\")")
    return()
  endif()
endif()

if(NOT TARGET apem_fast::apem_fast)
  add_library(apem_fast::apem_fast SHARED IMPORTED)
  set_target_properties(apem_fast::apem_fast PROPERTIES
                        IMPORTED_LOCATION "${_apem_fast_root}/lib/libapem_fast.so"
                        IMPORTED_SONAME libapem_fast.so)
  target_include_directories(apem_fast::apem_fast INTERFACE "${_apem_fast_root}/include")
  target_compile_features(apem_fast::apem_fast INTERFACE cxx_std_17)
  if(TARGET torch)
    target_link_libraries(apem_fast::apem_fast INTERFACE torch)
  else()
    target_include_directories(apem_fast::apem_fast SYSTEM INTERFACE "${TORCH_ROOT}/include")
    target_link_libraries(apem_fast::apem_fast INTERFACE "${TORCH_ROOT}/lib/libtorch_cpu.so" "${TORCH_ROOT}/lib/libc10.so")
    target_link_options(apem_fast::apem_fast INTERFACE "LINKER:-rpath-link,${TORCH_ROOT}/lib")
  endif()

  # APEM_FAST_CUDA_MAJOR chooses where several are there; else the newest.
  file(GLOB _apem_fast_cuda "${_apem_fast_root}/lib/libapem_fast_cuda${APEM_FAST_CUDA_MAJOR}*.so")
  if(_apem_fast_cuda)
    list(SORT _apem_fast_cuda ORDER DESCENDING)
    list(GET _apem_fast_cuda 0 _apem_fast_cuda)
    add_library(apem_fast::cuda INTERFACE IMPORTED)
    # Nothing in it is called by name: the linker is told to keep it.
    target_link_libraries(apem_fast::cuda INTERFACE apem_fast::apem_fast
                          "-Wl,--push-state,--no-as-needed,${_apem_fast_cuda},--pop-state")
  endif()
endif()

unset(_apem_fast_root)
unset(_apem_fast_cuda)
