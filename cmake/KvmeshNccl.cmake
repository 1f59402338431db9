# NCCL is optional. KVMESH_NCCL decides whether groups of GPUs are built, which needs the CUDA
# toolkit and NCCL.
include_guard()

set(nccl_is_here OFF)
if(KVMESH_CUDA)
  find_package(NCCL 2.18 QUIET) # 2.18: ncclConfig_t with all that is used
  set(nccl_is_here ${NCCL_FOUND})
endif()
option(KVMESH_NCCL "Build groups of GPUs over NCCL" ${nccl_is_here})
if(KVMESH_NCCL AND NOT nccl_is_here)
  message(FATAL_ERROR "KVMESH_NCCL is ON, but the CUDA toolkit or NCCL 2.18 or later was not found. "
                      "Set NCCL_ROOT to where NCCL is, or KVMESH_NCCL to OFF.")
endif()
message(STATUS "NCCL: ${KVMESH_NCCL} (${NCCL_VERSION})")
