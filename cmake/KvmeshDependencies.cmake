# What the library links. The same file is installed and included by kvmesh-config.cmake: static
# libraries pass their dependencies on to whoever links them.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
# Boost brings its own package files; CMake is giving up those that it had for it.
if(POLICY CMP0167)
  cmake_policy(SET CMP0167 NEW)
endif()
find_package(Boost REQUIRED)
set(MPI_CXX_SKIP_MPICXX TRUE) # the C interface only: MPI's own C++ one is deprecated
find_package(MPI REQUIRED COMPONENTS CXX)
find_package(PkgConfig REQUIRED)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET GLOBAL libhwy)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET GLOBAL libxxhash)
