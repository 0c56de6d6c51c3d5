# What another CMake project needs for find_package(afnext): the library, its headers, the package.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/afnext)
install(TARGETS afnext_core EXPORT afnext ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
install(DIRECTORY csrc/include/afnext DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(EXPORT afnext NAMESPACE afnext:: FILE afnextTargets.cmake DESTINATION ${package_dir}
        COMPONENT cpp)
configure_package_config_file(cmake/afnextConfig.cmake.in afnextConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(afnextConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/afnextConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/afnextConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT cpp)
