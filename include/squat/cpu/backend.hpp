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
  struct Operations : cpu::Operations<T> {
    explicit Operations(const Options &options)
        : cpu::Operations<T>(options, KeyBits, ValueBits, kernels()) {}

   private:
    static constexpr cpu::CodeKernels kernels() {
      cpu::CodeKernels kernels;
      kernels.add_keys<KeyBits>();
      kernels.add_values<ValueBits>();
      return kernels;
    }
  };
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
