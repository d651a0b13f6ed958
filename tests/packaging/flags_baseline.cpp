#include "flags_unit.hpp"

Outcome run_baseline() { return run_cache(); }
