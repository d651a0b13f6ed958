# cpack: libsquat-dev for Debian and Ubuntu, headers with what of squat::compiled and libsquat.so is built.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME libsquat-dev)
set(CPACK_PACKAGE_CONTACT "The squat authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libeigen3-dev (>= 3.4)")
set(CPACK_STRIP_FILES OFF)  # a static library
if(NOT SQUAT_BUILD_COMPILED AND NOT SQUAT_BUILD_C_LIBRARY)
  set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
endif()
include(CPack)
