# CUDA: found, not required. KVMESH_CUDA says whether the CUDA backend is built; on machines without
# a GPU too, where it compiles kernels but runs none. Also: kvmesh_embed.
include_guard()

# 12.9: the first whose compiler can be told to keep no cache of its own.
find_package(CUDAToolkit 12.9 QUIET)
if(CUDAToolkit_FOUND AND TARGET CUDA::nvrtc AND TARGET CUDA::cudart_static)
  set(cuda_is_here ON)
else()
  set(cuda_is_here OFF)
endif()
option(KVMESH_CUDA "Build the CUDA backend (toolkit 12.9 or later)" ${cuda_is_here})
if(KVMESH_CUDA AND NOT cuda_is_here)
  message(FATAL_ERROR "KVMESH_CUDA is ON, but there is no CUDA toolkit 12.9 or later with NVRTC. "
                      "Set CUDAToolkit_ROOT to where it is, or KVMESH_CUDA to OFF.")
endif()
message(STATUS "CUDA backend: ${KVMESH_CUDA} (toolkit: ${CUDAToolkit_VERSION})")

set(KVMESH_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_DIR}/KvmeshEmbedFiles.cmake)

# kvmesh_embed(TARGET NAME files...)
# Compiles the texts of the files, given relative to the root, into TARGET, which declares and calls
#   std::span<const kvmesh::jit::SourceFile> kvmesh::NAME();
# A file's name in the table is its path from the root, so that kernels include one another as the
# host's sources do. Made again when a file changes.
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
