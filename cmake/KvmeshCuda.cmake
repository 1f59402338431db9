# CUDA is optional. KVMESH_CUDA decides whether the CUDA backend is built; also on machines without
# a GPU, where it compiles kernels but runs none. Also: kvmesh_cuda_object, kvmesh_embed.
include_guard()

# 12.9 is the first version whose compiler has an option to keep no cache of its own.
find_package(CUDAToolkit 12.9 QUIET)
if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE AND TARGET CUDA::nvrtc
   AND TARGET CUDA::cudart_static)
  set(cuda_is_here ON)
else()
  set(cuda_is_here OFF)
endif()
option(KVMESH_CUDA "Build the CUDA backend (toolkit 12.9 or later)" ${cuda_is_here})
if(KVMESH_CUDA AND NOT cuda_is_here)
  message(FATAL_ERROR "KVMESH_CUDA is ON, but there is no CUDA toolkit 12.9 or later with "
                      "NVRTC and nvcc. Set CUDAToolkit_ROOT to where it is, or KVMESH_CUDA to "
                      "OFF.")
endif()
message(STATUS "CUDA backend: ${KVMESH_CUDA} (toolkit: ${CUDAToolkit_VERSION})")

# Machine code for these chips, and for later ones code that the driver compiles.
set(KVMESH_CUDA_ARCHITECTURES 80 90 100 CACHE STRING "Architectures that .cu files are compiled for")

# kvmesh_cuda_object(TARGET FILE.cu)
# Compiles a .cu file into TARGET by nvcc itself. CMake's own CUDA language would link every program
# that uses the library with nvcc, and CMake 3.25 has no C++20 for it.
# Warns of kernels that spill registers or use local memory: none of the library's does, nor CUB's.
function(kvmesh_cuda_object target file)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/${file}.o)
  set(codes "")
  foreach(architecture ${KVMESH_CUDA_ARCHITECTURES})
    list(APPEND codes -gencode arch=compute_${architecture},code=sm_${architecture})
    set(newest ${architecture})
  endforeach()
  list(APPEND codes -gencode arch=compute_${newest},code=compute_${newest})
  set(assembler -Xptxas -warn-spills,-warn-lmem-usage)
  if(KVMESH_WERROR)
    list(APPEND assembler -Xptxas -Werror)
  endif()
  cmake_path(GET output PARENT_PATH folder)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} -ccbin ${CMAKE_CXX_COMPILER} -std=c++20 -O3 -lineinfo
            --expt-relaxed-constexpr ${codes} ${assembler} -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra
            -I${PROJECT_SOURCE_DIR} -I${PROJECT_SOURCE_DIR}/include -MD -MF ${output}.d -MT ${output}
            -c ${CMAKE_CURRENT_SOURCE_DIR}/${file} -o ${output}
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file}
    DEPFILE ${output}.d
    COMMENT "Compiling ${file} with nvcc"
    VERBATIM)
  set_source_files_properties(${output} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(${target} PRIVATE ${output})
  set_property(TARGET ${target} APPEND PROPERTY KVMESH_CUDA_OBJECTS ${output})
endfunction()

set(KVMESH_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_DIR}/KvmeshEmbedFiles.cmake)

# kvmesh_embed(TARGET NAME files...)
# Compiles the texts of the files, given relative to the root, into TARGET, which declares and calls
#   std::span<const kvmesh::jit::SourceFile> kvmesh::NAME();
# A file's name in the table is its path from the root (a public header's, from include/), so that
# kernels include one another as the host's sources do. Made again when a file changes.
function(kvmesh_embed target name)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  list(TRANSFORM ARGN PREPEND ${PROJECT_SOURCE_DIR}/ OUTPUT_VARIABLE paths)
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -D ROOT=${PROJECT_SOURCE_DIR} -D OUTPUT=${output} -D NAME=${name}
            -D "FILES=${ARGN}" -P ${KVMESH_EMBED_SCRIPT}
    DEPENDS ${paths} ${KVMESH_EMBED_SCRIPT}
    COMMENT "Embedding the sources of ${name}"
    VERBATIM)
  target_sources(${target} PRIVATE ${output})
endfunction()
