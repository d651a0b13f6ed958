#pragma once

// Tensor elements of a GGUF file as floats.

#include <vector>

#include "gguf.hpp"

namespace llama {

/// All elements in the order of the file.
std::vector<float> dequantize(const Tensor &tensor);

}  // namespace llama
