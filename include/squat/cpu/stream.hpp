#pragma once

// What a call on the CPU is ordered by.

#include "squat/core/instruction_set.hpp"

namespace squat::cpu::inline SQUAT_API_NAMESPACE {

/// A call is done when it returns: there is nothing to name.
struct Stream {};

}  // namespace squat::cpu::inline SQUAT_API_NAMESPACE
