# MPI is optional. KVMESH_MPI decides whether the communicator over MPI is built; without it
# ranks are threads or meet over TCP.
include_guard()

set(MPI_CXX_SKIP_MPICXX TRUE) # the C interface only: MPI's own C++ one is deprecated
find_package(MPI QUIET COMPONENTS CXX)
option(KVMESH_MPI "Build the communicator over MPI" ${MPI_CXX_FOUND})
if(KVMESH_MPI AND NOT MPI_CXX_FOUND)
  message(FATAL_ERROR "KVMESH_MPI is ON, but MPI was not found. Set MPI_HOME to where it is, or "
                      "KVMESH_MPI to OFF.")
endif()
message(STATUS "MPI: ${KVMESH_MPI} (standard ${MPI_CXX_VERSION})")
