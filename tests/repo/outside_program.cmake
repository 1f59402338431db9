# Uses kvmesh in outside_program/ as another project would. cmake -D WAY=... -P outside_program.cmake
#   WAY=install       builds and runs it with kvmesh's static libraries from a fresh prefix
#   WAY=shared        the same with the shared library, in a project where MPI is not found
#   WAY=subdirectory  with kvmesh's sources inside it: configures and generates everything, so every
#                     target and dependency is found from there, and compiles its own code and
#                     kvmesh's core, no more: the rest was compiled once already. Without MPI and
#                     without a build type; compiled without CUDA, whose objects the compiling of
#                     anything that uses kvmesh would wait for.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${WORK})
set(arguments -D CMAKE_CXX_COMPILER=${CXX} -D CMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER})
if(SANITIZE) # the libraries need the sanitizer's run time
  list(APPEND arguments -D CMAKE_CXX_FLAGS=-fsanitize=${SANITIZE}
                        -D CMAKE_C_FLAGS=-fsanitize=${SANITIZE})
endif()

if(WAY STREQUAL subdirectory)
  list(APPEND arguments -D KVMESH_SOURCE=${SOURCE} -D CMAKE_DISABLE_FIND_PACKAGE_MPI=ON)
else()
  run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
  file(GLOB installed RELATIVE ${WORK}/prefix ${WORK}/prefix/*)
  list(FILTER installed EXCLUDE REGEX "^(bin|include|lib|lib64)$")
  if(installed) # such as a part of the Python package
    message(FATAL_ERROR "installed beside the library and the program: ${installed}")
  endif()
  list(APPEND arguments -D CMAKE_PREFIX_PATH=${WORK}/prefix -D CMAKE_BUILD_TYPE=${BUILD_TYPE})
endif()
if(WAY STREQUAL shared)
  list(APPEND arguments -D KVMESH_LIBRARY=kvmesh::shared)
endif()

run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/outside_program -B ${WORK}/build -G ${GENERATOR}
    ${arguments})
if(WAY STREQUAL install)
  run(${CMAKE_COMMAND} --build ${WORK}/build)
  run(${WORK}/build/outside_program)
  # MPI keeps what it allocates, so leaks are not reported.
  set(ENV{ASAN_OPTIONS} detect_leaks=0)
  # All values are 0.3, as bfloat16 has it, and so is their mean under any weights.
  execute_process(COMMAND ${WORK}/build/first_program OUTPUT_VARIABLE said COMMAND_ERROR_IS_FATAL ANY)
  if(NOT said MATCHES "rank 0 of 1: o.0. = 0.301, 1 of 64 pages free")
    message(FATAL_ERROR "first_program said: ${said}")
  endif()
  if(EXISTS ${WORK}/build/gpu_program)
    execute_process(COMMAND ${WORK}/build/gpu_program OUTPUT_VARIABLE said ERROR_VARIABLE said)
    if(NOT said MATCHES "rank 0 of 1, GPU 0: 50 steps|gpu_program: no CUDA device")
      message(FATAL_ERROR "gpu_program said: ${said}")
    endif()
  endif()
elseif(WAY STREQUAL shared)
  run(${CMAKE_COMMAND} --build ${WORK}/build --target outside_program)
  run(${WORK}/build/outside_program)
  file(GLOB_RECURSE library ${WORK}/prefix/*/libkvmesh.so)
  run(${PYTHON} ${CMAKE_CURRENT_LIST_DIR}/exports.py ${library} ${WORK}/prefix/include/kvmesh)
  # And a project in C, on ranks that are threads, and on those of mpirun.
  run(${CMAKE_COMMAND} -S ${SOURCE}/tests/c -B ${WORK}/build_c -G ${GENERATOR} ${arguments})
  run(${CMAKE_COMMAND} --build ${WORK}/build_c)
  run(${WORK}/build_c/c_program threads)
  run(${WORK}/build_c/c_program tcp)
  # The headers are for C++, too.
  foreach(standard 11 17 20)
    run(${CXX} -std=c++${standard} -pedantic -Wall -Wextra -Werror -fsyntax-only
        -I ${WORK}/prefix/include -x c++ ${SOURCE}/docs/c_program.c)
  endforeach()
  # The same program by pkg-config.
  file(GLOB_RECURSE package ${WORK}/prefix/*/kvmesh.pc)
  cmake_path(GET package PARENT_PATH folder)
  set(ENV{PKG_CONFIG_PATH} ${folder})
  execute_process(COMMAND pkg-config --cflags --libs kvmesh OUTPUT_VARIABLE flags
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags)
  file(GLOB sources ${SOURCE}/tests/c/*.c)
  if(SANITIZE)
    list(APPEND flags -fsanitize=${SANITIZE})
  endif()
  run(cc -std=c11 ${sources} ${flags} -lm -o ${WORK}/c_program)
  set(ENV{ASAN_OPTIONS} detect_leaks=0) # MPI keeps what it allocates
  if(MPIEXEC)
    run(${MPIEXEC} --oversubscribe -np 2 ${WORK}/build_c/c_program)
    run(${MPIEXEC} --oversubscribe -np 2 ${WORK}/build_c/c_of_docs)
  endif()
else()
  run(${CMAKE_COMMAND} -D KVMESH_CUDA=OFF -D KVMESH_NCCL=OFF ${WORK}/build)
  run(${CMAKE_COMMAND} --build ${WORK}/build --target outside_objects kvmesh_core)
endif()
