"""The Conan 2 recipe: conan create cmake/conan"""

import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load


class Squat(ConanFile):
    name = "squat"
    description = "Quantized KV caches for language model inference, header-only C++20"
    license = "Apache-2.0"
    topics = ("kv-cache", "quantization", "inference", "header-only")
    settings = "os", "arch", "compiler", "build_type"
    # compiled: squat::compiled too, the kernels as a static library, picked for the machine at run time.
    # system_eigen: Eigen 3.4 as the machine has it, instead of Conan's package.
    options = {"compiled": [True, False], "system_eigen": [True, False]}
    default_options = {"compiled": False, "system_eigen": False}

    @property
    def _root(self):
        return os.path.join(self.recipe_folder, "..", "..")

    def set_version(self):
        if not self.version:
            text = load(self, os.path.join(self._root, "include", "squat", "core", "version.hpp"))
            self.version = ".".join(re.findall(r"#define SQUAT_VERSION_\w+ (\d+)", text))

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "include/*", "cmake/*"):
            copy(self, pattern, src=self._root, dst=self.export_sources_folder)

    def configure(self):
        self.package_type = "static-library" if self.options.compiled else "header-library"

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        if not self.options.system_eigen:
            self.requires("eigen/3.4.0", transitive_headers=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def package_id(self):
        if not self.info.options.compiled:
            self.info.settings.clear()

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.user_presets_path = False
        for part in ("TESTS", "BENCHMARKS", "EXAMPLES", "C_LIBRARY", "CUDA"):
            toolchain.cache_variables[f"SQUAT_BUILD_{part}"] = False
        toolchain.cache_variables["SQUAT_BUILD_COMPILED"] = bool(self.options.compiled)
        toolchain.generate()
        CMakeDeps(self).generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        copy(self, "LICENSE", src=self.source_folder, dst=os.path.join(self.package_folder, "licenses"))
        CMake(self).install()

    def package_info(self):
        # CMake takes the files that the library installs: squat::squat, squat::compiled, squat::cuda.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = [os.path.join("share", "squat", "cmake")]
        self.cpp_info.bindirs = []
        if self.options.compiled:
            self.cpp_info.libs = ["squat_compiled"]
            self.cpp_info.defines = ["SQUAT_COMPILED"]
        else:
            self.cpp_info.libdirs = []
