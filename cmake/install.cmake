include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS squat EXPORT squat-targets)
install(DIRECTORY include/squat DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT squat-targets NAMESPACE squat:: DESTINATION ${CMAKE_INSTALL_DATADIR}/squat/cmake)
if(SQUAT_BUILD_COMPILED)
  install(TARGETS squat_compiled EXPORT squat-compiled-targets)
  install(EXPORT squat-compiled-targets NAMESPACE squat:: DESTINATION ${CMAKE_INSTALL_DATADIR}/squat/cmake)
  configure_file(cmake/squat-compiled.pc.in squat-compiled.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/squat-compiled.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
if(SQUAT_BUILD_C_LIBRARY)
  install(TARGETS squat_c EXPORT squat-c-targets)
  install(EXPORT squat-c-targets NAMESPACE squat:: DESTINATION ${CMAKE_INSTALL_DATADIR}/squat/cmake)
endif()
configure_file(cmake/squat.pc.in squat.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/squat.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
configure_package_config_file(cmake/squat-config.cmake.in squat-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_DATADIR}/squat/cmake)
write_basic_package_version_file(squat-config-version.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/squat-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/squat-config-version.cmake
              cmake/squat-cuda.cmake
        DESTINATION ${CMAKE_INSTALL_DATADIR}/squat/cmake)
