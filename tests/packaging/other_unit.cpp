#include "squat/squat.hpp"

// What is not inline would be in both units.
squat::Index tokens_in_other_unit() { return squat::TensorView<float>().tokens; }
