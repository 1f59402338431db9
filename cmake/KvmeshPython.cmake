# Python is optional. KVMESH_PYTHON decides whether the package kvmesh is built, which needs
# Python's headers and nanobind (pip install nanobind). Not with sanitizers: Python has none.
include_guard()

find_package(Python 3.9 QUIET COMPONENTS Interpreter Development.Module)
set(nanobind_is_here OFF)
if(Python_FOUND)
  execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --version RESULT_VARIABLE missing
                  OUTPUT_QUIET ERROR_QUIET)
  if(missing EQUAL 0 AND PROJECT_IS_TOP_LEVEL AND NOT KVMESH_SANITIZE)
    set(nanobind_is_here ON)
  endif()
endif()
option(KVMESH_PYTHON "Build the Python package" ${nanobind_is_here})
message(STATUS "Python package: ${KVMESH_PYTHON} (Python ${Python_VERSION})")
if(KVMESH_PYTHON)
  add_subdirectory(python)
endif()
