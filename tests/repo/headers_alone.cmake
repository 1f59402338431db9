# The target headers_alone compiles the headers of the libraries by themselves, without making code, and
# program_headers_alone, which no check builds, those of the programs and tests. A stamp and a dependency file
# for each header: only what changed is compiled again. A header that a source or another header includes first
# is compiled alone there, so it is left out here.
file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}
     ${PROJECT_SOURCE_DIR}/include/*.hpp
     ${PROJECT_SOURCE_DIR}/core/*.hpp
     ${PROJECT_SOURCE_DIR}/allocator/*.hpp
     ${PROJECT_SOURCE_DIR}/kernels/*.hpp
     ${PROJECT_SOURCE_DIR}/comm/*.hpp
     ${PROJECT_SOURCE_DIR}/runtime/*.hpp
     ${PROJECT_SOURCE_DIR}/launch/*.hpp
     ${PROJECT_SOURCE_DIR}/tests/*.hpp
     ${PROJECT_SOURCE_DIR}/bench/*.hpp)

if(KVMESH_CUDA)
  set(cuda_include_dirs ${CUDAToolkit_INCLUDE_DIRS})
else()
  list(FILTER headers EXCLUDE REGEX "/(cuda|gpu|jit)/|/(cuda|gpu)_[^/]*$")
  foreach(header ${headers}) # elsewhere
    file(STRINGS ${PROJECT_SOURCE_DIR}/${header} cuda_includes REGEX "^#include <cuda_" LIMIT_COUNT 1)
    if(cuda_includes)
      list(REMOVE_ITEM headers ${header})
    endif()
  endforeach()
endif()

if(KVMESH_NCCL)
  list(APPEND cuda_include_dirs ${NCCL_INCLUDE_DIR})
else()
  list(FILTER headers EXCLUDE REGEX "/nccl/(state|[a-z_]*params)[.]hpp$")
endif()

string(REGEX REPLACE "hpp(;|$)" "cpp\\1" sources "${headers}")
foreach(file ${headers} ${sources})
  if(EXISTS ${PROJECT_SOURCE_DIR}/${file})
    file(STRINGS ${PROJECT_SOURCE_DIR}/${file} first_include REGEX "^#include" LIMIT_COUNT 1)
    string(REGEX REPLACE "^#include \"(.*)\"$" "\\1" first_include "${first_include}")
    list(REMOVE_ITEM headers ${first_include} include/${first_include})
  endif()
endforeach()

# All libraries of all folders are on the include path; the layering test checks which folder uses which.
set(include_dirs ${cuda_include_dirs})
set(libraries fmt::fmt PkgConfig::hwy PkgConfig::xxhash OpenSSL::Crypto GTest::gtest)
if(KVMESH_MPI)
  list(APPEND libraries MPI::MPI_CXX)
else()
  list(FILTER headers EXCLUDE REGEX "/mpi/|tests/support/mpi")
endif()
foreach(library ${libraries})
  list(APPEND include_dirs $<TARGET_PROPERTY:${library},INTERFACE_INCLUDE_DIRECTORIES>)
endforeach()

# What the targets of some tests define.
set(definitions -DKVMESH_CXX_COMPILER="c++" -DKVMESH_SOURCE_DIR=".")

set(stamps "")
set(program_stamps "")
foreach(header ${headers})
  set(stamp ${CMAKE_CURRENT_BINARY_DIR}/headers/${header}.stamp)
  cmake_path(GET stamp PARENT_PATH folder)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(
    OUTPUT ${stamp}
    COMMAND
      ${CMAKE_CXX_COMPILER} -std=c++20 -fsyntax-only -Wall -Wextra -Werror
      -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX ${definitions} -I${PROJECT_SOURCE_DIR} -I${PROJECT_SOURCE_DIR}/include
      "$<$<BOOL:${include_dirs}>:-I$<JOIN:${include_dirs},;-I>>" -MD -MF ${stamp}.d -MT ${stamp}
      -include ${PROJECT_SOURCE_DIR}/${header} -x c++ /dev/null
    COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
    DEPENDS ${PROJECT_SOURCE_DIR}/${header}
    DEPFILE ${stamp}.d
    COMMENT "Compiling ${header} alone"
    COMMAND_EXPAND_LISTS VERBATIM)
  if(header MATCHES "^(launch|tests|bench)/")
    list(APPEND program_stamps ${stamp})
  else()
    list(APPEND stamps ${stamp})
  endif()
endforeach()
add_custom_target(headers_alone DEPENDS ${stamps})
add_custom_target(program_headers_alone DEPENDS ${program_stamps})
