#pragma once

// SplitContext over caches of the CUDA backend.

#include "squat/parallel/context_partials.cuh"
#include "squat/parallel/split_context.hpp"
