# The libraries that the static ones link. The same file is installed and included by kvmesh-config.cmake,
# since static libraries pass their dependencies on to their users. Both set kvmesh_HAS_MPI,
# kvmesh_HAS_CUDA and kvmesh_HAS_NCCL first. A missing package ends the build's configuration
# (kvmesh_FIND_REQUIRED), but find_package(kvmesh) then only reports that kvmesh is not found.
include(CMakeFindDependencyMacro)

find_dependency(Threads)
find_dependency(fmt)
find_dependency(OpenSSL COMPONENTS Crypto)
# Boost has its own package files; CMake's are deprecated.
if(POLICY CMP0167)
  cmake_policy(SET CMP0167 NEW)
endif()
find_dependency(Boost)

find_dependency(PkgConfig)
foreach(name hwy isal xxhash)
  if(NOT TARGET PkgConfig::${name})
    pkg_check_modules(${name} QUIET IMPORTED_TARGET GLOBAL lib${name})
  endif()
  if(NOT TARGET PkgConfig::${name})
    set(kvmesh_FOUND FALSE)
    set(kvmesh_NOT_FOUND_MESSAGE "kvmesh needs lib${name}, which pkg-config does not find.")
    return()
  endif()
endforeach()

if(kvmesh_HAS_MPI)
  find_dependency(MPI COMPONENTS CXX)
endif()
if(kvmesh_HAS_CUDA)
  find_dependency(CUDAToolkit)
  # CUDA::nvrtc of older CMake brings the driver's library, which NVRTC does not need: a program that
  # named it would not start on a machine without a GPU.
  if(NOT TARGET kvmesh::nvrtc)
    add_library(kvmesh::nvrtc UNKNOWN IMPORTED GLOBAL)
    set_target_properties(
      kvmesh::nvrtc PROPERTIES IMPORTED_LOCATION ${CUDA_nvrtc_LIBRARY}
                               INTERFACE_INCLUDE_DIRECTORIES "${CUDAToolkit_INCLUDE_DIRS}")
  endif()
endif()
if(kvmesh_HAS_NCCL)
  find_dependency(NCCL)
endif()
