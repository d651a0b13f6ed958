#pragma once

/// @file
/// The cache of a whole model on the CPU, its widths chosen at run time: squat::ModelCache. Most of it
/// is part of squat::compiled; without that library, it compiles all kernels of the CPU.

#include "squat/model/cpu_group.hpp"
#include "squat/model/model_cache.hpp"
#include "squat/model/model_options.hpp"
#include "squat/squat.hpp"
