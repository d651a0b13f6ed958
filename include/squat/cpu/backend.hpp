#pragma once

// The CPU backend, header-only.

#include "squat/cache/options.hpp"
#include "squat/core/instruction_set.hpp"
#include "squat/cpu/operations.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Its name holds the instruction set it is compiled for, so that objects built
/// with different flags do not share code.
struct Cpu {
  using Stream = cpu::Stream;

  template <class T, int KeyBits, int ValueBits>
  using Operations = cpu::Operations<T>;

  /// Compiles the kernels of these widths alone.
  template <class T, int KeyBits, int ValueBits>
  static Operations<T, KeyBits, ValueBits> make_operations(const Options &options) {
    cpu::CodeKernels kernels;
    kernels.add_keys<KeyBits>();
    kernels.add_values<ValueBits>();
    return {options, KeyBits, ValueBits, kernels};
  }

  /// Those of all widths: see model/cpu_group.hpp.
  template <class T>
  static cpu::Operations<T> make_operations(const Options &options, int key_bits, int value_bits) {
    return {options, key_bits, value_bits, cpu::code_kernels<2, 3, 4, 8, 16>()};
  }
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
