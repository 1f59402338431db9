# The shared library, libkvmesh.so: all folders in one. It exports only the public C++ API and the
# C ABI, and passes no dependency on to its users.
include_guard()

get_property(folders GLOBAL PROPERTY KVMESH_FOLDERS)
add_library(kvmesh_shared SHARED)
add_library(kvmesh::shared ALIAS kvmesh_shared)
set(map ${CMAKE_CURRENT_LIST_DIR}/kvmesh.map)
foreach(folder ${folders})
  # The objects of the static library, so nothing is compiled twice.
  target_sources(kvmesh_shared PRIVATE $<TARGET_OBJECTS:${folder}>)
  get_target_property(objects ${folder} KVMESH_CUDA_OBJECTS)
  if(objects)
    set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(kvmesh_shared PRIVATE ${objects})
  endif()
  add_dependencies(kvmesh_shared ${folder})
  get_target_property(links ${folder} LINK_LIBRARIES)
  list(FILTER links EXCLUDE REGEX "^kvmesh::[a-z]+$|kvmesh_(flags|odr)")
  target_link_libraries(kvmesh_shared PRIVATE ${links})
endforeach()
if(KVMESH_CUDA)
  target_link_libraries(kvmesh_shared PRIVATE kvmesh::nvrtc)
endif()
target_link_libraries(kvmesh_shared PRIVATE kvmesh_flags)
target_link_options(kvmesh_shared PRIVATE LINKER:--version-script=${map} LINKER:--as-needed
                                          LINKER:--no-undefined)
if(KVMESH_ODR)
  target_link_options(kvmesh_shared PRIVATE -fno-lto)
endif()
target_include_directories(kvmesh_shared INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
target_compile_features(kvmesh_shared INTERFACE cxx_std_20)
# Before 1.0 a minor version may change the binary interface.
set(shared_version ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
set_target_properties(
  kvmesh_shared
  PROPERTIES OUTPUT_NAME kvmesh
             LINKER_LANGUAGE CXX
             LINK_DEPENDS ${map}
             VERSION ${PROJECT_VERSION}
             SOVERSION ${shared_version}
             INSTALL_RPATH_USE_LINK_PATH ON)
set(shared_library libkvmesh.so.${PROJECT_VERSION})
