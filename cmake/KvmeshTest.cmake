# Registration of tests, with or without mpirun.
include_guard()

# The environment of every test. Open MPI: allowed as root, no pinning (ranks share few cores), waiting
# ranks yield, and no copies between address spaces, which containers forbid.
set(KVMESH_TEST_ENVIRONMENT
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
    OMPI_MCA_btl_vader_single_copy_mechanism=none)

# Tests are compiled more often than they are run for long: less optimisation makes a check shorter.
set(KVMESH_TEST_OPTIONS $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)

# Tests that wait most of the time, for deadlines and for processes that they start, count as one processor
# and start first: the long tests that compute run meanwhile.
set(KVMESH_COST_OF_WAITING 2000)

# kvmesh_as_test(TARGET): options, include paths from the root, GoogleTest and its precompiled header, as for
# everything compiled for tests.
function(kvmesh_as_test target)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_options(${target} PRIVATE ${KVMESH_TEST_OPTIONS})
  target_link_libraries(${target} PRIVATE GTest::gtest kvmesh_flags)
  if(KVMESH_PRECOMPILED)
    target_precompile_headers(${target} REUSE_FROM kvmesh_test_precompiled)
  endif()
endfunction()

# GoogleTest and its includes are most of the compile time of a test file.
if(KVMESH_PRECOMPILED)
  add_library(kvmesh_test_precompiled OBJECT ${PROJECT_SOURCE_DIR}/cmake/precompiled.cpp)
  target_compile_options(kvmesh_test_precompiled PRIVATE ${KVMESH_TEST_OPTIONS})
  target_link_libraries(kvmesh_test_precompiled PRIVATE GTest::gtest kvmesh_flags)
  target_precompile_headers(kvmesh_test_precompiled PRIVATE <gtest/gtest.h> <algorithm> <functional>
                                                             <random> <thread>)
endif()

# kvmesh_test_objects(NAME SOURCES ... LINK ...): objects that several test programs share, compiled
# once. A program lists $<TARGET_OBJECTS:NAME> among its sources.
function(kvmesh_test_objects name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} OBJECT ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK})
  kvmesh_as_test(${name})
endfunction()

# kvmesh_test(NAME SOURCES ... LINK ... [LABELS ...]): one GoogleTest program, one CTest test.
function(kvmesh_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK} GTest::gtest_main)
  kvmesh_as_test(${name})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "cpu;${arg_LABELS}" TIMEOUT 600
                                          ENVIRONMENT "${KVMESH_TEST_ENVIRONMENT}")
endfunction()

# kvmesh_long_test(NAME SHARDS n SOURCES ... LINK ...): one program whose tests take minutes, as n
# CTest tests that run side by side, before all others that compute: those fill the time beside the last of them.
function(kvmesh_long_test name)
  cmake_parse_arguments(arg "" "SHARDS" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK} GTest::gtest_main)
  kvmesh_as_test(${name})
  math(EXPR last "${arg_SHARDS} - 1")
  foreach(shard RANGE ${last})
    set(environment ${KVMESH_TEST_ENVIRONMENT} GTEST_TOTAL_SHARDS=${arg_SHARDS}
                    GTEST_SHARD_INDEX=${shard})
    add_test(NAME ${name}_${shard} COMMAND ${name})
    set_tests_properties(${name}_${shard} PROPERTIES LABELS "cpu" TIMEOUT 600 COST 1000
                                                     ENVIRONMENT "${environment}")
  endforeach()
endfunction()

# kvmesh_mpi_test(NAME RANKS 1 2 4 SOURCES ... LINK ...): the same program under mpirun with each
# number of ranks. It has a main of its own, in which every process is one rank of every test.
function(kvmesh_mpi_test name)
  if(NOT KVMESH_MPI)
    return()
  endif()
  cmake_parse_arguments(arg "" "" "RANKS;SOURCES;LINK" ${ARGN})
  add_executable(${name} ${arg_SOURCES} $<TARGET_OBJECTS:mpi_main> $<TARGET_OBJECTS:mpi_tests>)
  target_link_libraries(${name} PRIVATE ${arg_LINK})
  kvmesh_as_test(${name})
  foreach(ranks ${arg_RANKS})
    kvmesh_mpirun(${name}_np${ranks} RANKS ${ranks} COMMAND $<TARGET_FILE:${name}>)
  endforeach()
endfunction()

# kvmesh_mpirun(NAME RANKS n COMMAND ... [LABELS ...]): a test that runs a command line under mpirun.
# Without LeakSanitizer: Open MPI keeps what it allocates, in plugins that it has unloaded by the time
# of the report, so a suppression could not name them. The tests with ranks as threads look for leaks.
function(kvmesh_mpirun name)
  if(NOT KVMESH_MPI)
    return()
  endif()
  cmake_parse_arguments(arg "" "RANKS" "COMMAND;LABELS" ${ARGN})
  add_test(NAME ${name} COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe -np ${arg_RANKS}
                                ${arg_COMMAND})
  set_tests_properties(
    ${name} PROPERTIES LABELS "cpu;mpi;${arg_LABELS}" TIMEOUT 300 PROCESSORS ${arg_RANKS}
                       SKIP_REGULAR_EXPRESSION "skipped under mpirun: "
                       ENVIRONMENT "${KVMESH_TEST_ENVIRONMENT};ASAN_OPTIONS=detect_leaks=0")
endfunction()
