# An overlay port of the sources that it lies in: vcpkg install squat --overlay-ports=cmake/vcpkg/ports
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../../.." ABSOLUTE)

vcpkg_check_features(OUT_FEATURE_OPTIONS FEATURE_OPTIONS FEATURES compiled SQUAT_BUILD_COMPILED)
vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS ${FEATURE_OPTIONS} -DSQUAT_BUILD_TESTS=OFF -DSQUAT_BUILD_BENCHMARKS=OFF -DSQUAT_BUILD_EXAMPLES=OFF
          -DSQUAT_BUILD_C_LIBRARY=OFF -DSQUAT_BUILD_CUDA=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/squat/cmake)
vcpkg_fixup_pkgconfig()

# Headers once, not for each build type.
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include" "${CURRENT_PACKAGES_DIR}/debug/share")
if(NOT "compiled" IN_LIST FEATURES)
  file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug" "${CURRENT_PACKAGES_DIR}/lib")
endif()
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
