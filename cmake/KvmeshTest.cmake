# Registration of tests, with or without mpirun.
include_guard()

# kvmesh_test(NAME SOURCES ... LINK ... [LABELS ...]): one GoogleTest program, one CTest test.
function(kvmesh_test name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK} GTest::gtest GTest::gtest_main kvmesh_flags)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "cpu;${arg_LABELS}" TIMEOUT 600)
endfunction()

# kvmesh_mpi_test(NAME RANKS 1 2 4 SOURCES ... LINK ...): the same program, with its own main, under
# mpirun with each number of ranks.
function(kvmesh_mpi_test name)
  cmake_parse_arguments(arg "" "" "RANKS;SOURCES;LINK" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK} GTest::gtest kvmesh_flags)
  foreach(ranks ${arg_RANKS})
    add_test(NAME ${name}_np${ranks}
             COMMAND ${MPIEXEC_EXECUTABLE} --oversubscribe -np ${ranks} $<TARGET_FILE:${name}>)
    set_tests_properties(
      ${name}_np${ranks}
      PROPERTIES LABELS "cpu;mpi" TIMEOUT 300 ENVIRONMENT
                 "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMP_NUM_THREADS=1")
  endforeach()
endfunction()
