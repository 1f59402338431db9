# NCCL: found, not required. KVMESH_NCCL says whether groups of GPUs are built, which takes the CUDA
# toolkit, its compiler nvcc, and NCCL. Also: kvmesh_cuda_object.
include_guard()

set(nccl_is_here OFF)
if(KVMESH_CUDA AND CUDAToolkit_NVCC_EXECUTABLE)
  find_package(NCCL 2.18 QUIET) # 2.18: ncclConfig_t with all that is used
  set(nccl_is_here ${NCCL_FOUND})
endif()
option(KVMESH_NCCL "Build groups of GPUs over NCCL" ${nccl_is_here})
if(KVMESH_NCCL AND NOT nccl_is_here)
  message(FATAL_ERROR "KVMESH_NCCL is ON, but the CUDA toolkit with nvcc, or NCCL 2.18 or later, was "
                      "not found. Set NCCL_ROOT to where NCCL is, or KVMESH_NCCL to OFF.")
endif()
message(STATUS "NCCL: ${KVMESH_NCCL} (${NCCL_VERSION})")

# Machine code for these, and for what comes after them code that the driver compiles.
set(KVMESH_CUDA_ARCHITECTURES 80 90 100 CACHE STRING "Architectures that .cu files are compiled for")

# kvmesh_cuda_object(TARGET FILE.cu)
# Compiles a .cu file into TARGET by nvcc itself. CMake's own CUDA language would link every program
# that uses the library with nvcc, and CMake 3.25 knows no C++20 for it.
function(kvmesh_cuda_object target file)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/${file}.o)
  set(codes "")
  foreach(architecture ${KVMESH_CUDA_ARCHITECTURES})
    list(APPEND codes -gencode arch=compute_${architecture},code=sm_${architecture})
    set(newest ${architecture})
  endforeach()
  list(APPEND codes -gencode arch=compute_${newest},code=compute_${newest})
  cmake_path(GET output PARENT_PATH folder)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} -ccbin ${CMAKE_CXX_COMPILER} -std=c++20 -O3 -lineinfo
            ${codes} -Xcompiler -fPIC,-Wall,-Wextra -I${PROJECT_SOURCE_DIR}
            -I${PROJECT_SOURCE_DIR}/include -MD -MF ${output}.d -MT ${output}
            -c ${CMAKE_CURRENT_SOURCE_DIR}/${file} -o ${output}
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file}
    DEPFILE ${output}.d
    COMMENT "Compiling ${file} with nvcc"
    VERBATIM)
  set_source_files_properties(${output} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(${target} PRIVATE ${output})
endfunction()
