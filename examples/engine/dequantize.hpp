#pragma once

// Tensor elements of a GGUF file as floats.

#include <cstddef>
#include <span>
#include <vector>

#include "gguf.hpp"

namespace engine {

/// All elements in the order of the file.
std::vector<float> dequantize(const Tensor &tensor);

/// The elements [first, first + to.size()), both of whole blocks, which are inside the tensor.
void dequantize(const Tensor &tensor, std::size_t first, std::span<float> to);

}  // namespace engine
