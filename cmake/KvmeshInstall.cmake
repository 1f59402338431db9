# Files that `cmake --install` installs: the public headers, the static libraries, the shared one, and the
# package files that find_package(kvmesh) and pkg-config read; launch/ adds the program.
include_guard()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/kvmesh)

# The folders so far: launch/, which is added later, is a program, not a part of the library.
get_property(libraries GLOBAL PROPERTY KVMESH_FOLDERS)
set_target_properties(kvmesh_all PROPERTIES EXPORT_NAME kvmesh)
install(TARGETS ${libraries} kvmesh_all EXPORT kvmesh-targets)
install(EXPORT kvmesh-targets NAMESPACE kvmesh:: DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/kvmesh DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")

if(KVMESH_SHARED)
  install(TARGETS kvmesh_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  file(RELATIVE_PATH prefix_of_pc /prefix/${pkgconfig_dir} /prefix)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/kvmesh.pc.in ${PROJECT_BINARY_DIR}/kvmesh.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/kvmesh.pc DESTINATION ${pkgconfig_dir})
endif()

configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/kvmesh-config.cmake.in ${PROJECT_BINARY_DIR}/kvmesh-config.cmake
  INSTALL_DESTINATION ${package_dir}
  PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/kvmesh-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_SOURCE_DIR}/cmake/FindNCCL.cmake
              ${PROJECT_BINARY_DIR}/kvmesh-config.cmake
              ${PROJECT_BINARY_DIR}/kvmesh-config-version.cmake
              ${PROJECT_SOURCE_DIR}/cmake/KvmeshDependencies.cmake
        DESTINATION ${package_dir})
