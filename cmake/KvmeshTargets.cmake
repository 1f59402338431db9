# One target per folder, each with the same flags.
include_guard()
include(GNUInstallDirs)

# Warnings and sanitizers, for the project's own code only: never exported.
add_library(kvmesh_flags INTERFACE)
target_compile_features(kvmesh_flags INTERFACE cxx_std_20)
# Shadowing among locals only: a constructor's parameter may have the name of the member it sets.
target_compile_options(
  kvmesh_flags INTERFACE -Wall -Wextra -Wnon-virtual-dtor
                         $<IF:$<CXX_COMPILER_ID:GNU>,-Wshadow=local,-Wshadow>)
if(KVMESH_WERROR)
  target_compile_options(kvmesh_flags INTERFACE -Werror)
endif()
if(KVMESH_SANITIZE)
  target_compile_options(kvmesh_flags INTERFACE -fsanitize=${KVMESH_SANITIZE}
                                                -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(kvmesh_flags INTERFACE -fsanitize=${KVMESH_SANITIZE})
  if(KVMESH_SANITIZE STREQUAL "thread")
    # Boost.Asio would use fences, which ThreadSanitizer does not follow; its locks order as much.
    target_compile_definitions(kvmesh_flags INTERFACE BOOST_ASIO_DISABLE_FENCED_BLOCK)
  endif()
endif()

# The types of the library's and the program's sources beside their code, for the test repo_odr: a tenth
# more time to compile. Programs are linked from the code alone.
add_library(kvmesh_odr INTERFACE)
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(KVMESH_ODR OFF)
endif()
if(KVMESH_ODR)
  target_compile_options(kvmesh_odr INTERFACE -flto -ffat-lto-objects)
endif()

# kvmesh_folder(NAME SOURCES ... [PUBLIC ...] [PRIVATE ...])
# The static library kvmesh_NAME with the alias kvmesh::NAME. PUBLIC and PRIVATE list what it links.
function(kvmesh_folder name)
  cmake_parse_arguments(arg "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(kvmesh_${name} STATIC ${arg_SOURCES})
  add_library(kvmesh::${name} ALIAS kvmesh_${name})
  set_target_properties(kvmesh_${name} PROPERTIES EXPORT_NAME ${name}
                                                  POSITION_INDEPENDENT_CODE ON
                                                  CXX_VISIBILITY_PRESET hidden
                                                  VISIBILITY_INLINES_HIDDEN ON)
  set_property(GLOBAL APPEND PROPERTY KVMESH_FOLDERS kvmesh_${name})
  target_compile_features(kvmesh_${name} PUBLIC cxx_std_20)
  target_include_directories(
    kvmesh_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                          $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(kvmesh_${name} PUBLIC ${arg_PUBLIC}
                                       PRIVATE ${arg_PRIVATE} $<BUILD_INTERFACE:kvmesh_flags>
                                               $<BUILD_INTERFACE:kvmesh_odr>)
  if(KVMESH_ODR)
    target_link_options(kvmesh_${name} INTERFACE -fno-lto)
  endif()
  if(KVMESH_PRECOMPILED AND fmt::fmt IN_LIST arg_PRIVATE)
    target_precompile_headers(kvmesh_${name} REUSE_FROM kvmesh_precompiled)
  endif()
endfunction()
