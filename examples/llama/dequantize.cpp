#include "dequantize.hpp"

#include <Eigen/Core>
#include <cstring>

namespace llama {
namespace {

float read_half(const std::byte *from) {
  Eigen::half value;
  std::memcpy(&value, from, sizeof value);
  return static_cast<float>(value);
}

int low(std::byte byte) { return std::to_integer<int>(byte & std::byte{15}); }
int high(std::byte byte) { return std::to_integer<int>(byte >> 4); }

// Each block type: scales first, then quants. 4-bit quants i and i + 16 of a block of 32 share a byte.

void block_q4_0(const std::byte *block, float *to) {
  const float scale = read_half(block);
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * static_cast<float>(low(block[2 + i]) - 8);
    to[i + 16] = scale * static_cast<float>(high(block[2 + i]) - 8);
  }
}

void block_q4_1(const std::byte *block, float *to) {
  const float scale = read_half(block), least = read_half(block + 2);
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * static_cast<float>(low(block[4 + i])) + least;
    to[i + 16] = scale * static_cast<float>(high(block[4 + i])) + least;
  }
}

void block_q8_0(const std::byte *block, float *to) {
  const float scale = read_half(block);
  for (int i = 0; i < 32; ++i)
    to[i] = scale * static_cast<float>(std::to_integer<std::int8_t>(block[2 + i]));
}

/// 256 elements: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales, one float16
/// scale. Each half holds 128 elements in four runs of 32 that share the bytes.
void block_q6_k(const std::byte *block, float *to) {
  const float scale = read_half(block + 208);
  for (int part = 0; part < 2; ++part, to += 128) {
    const std::byte *lows = block + part * 64;
    const std::byte *highs = block + 128 + part * 32;
    const std::byte *scales = block + 192 + part * 8;
    for (int run = 0; run < 4; ++run) {
      for (int i = 0; i < 32; ++i) {
        const std::byte nibbles = lows[(run % 2) * 32 + i];
        const int nibble = run < 2 ? low(nibbles) : high(nibbles);
        const int upper = std::to_integer<int>((highs[i] >> (2 * run)) & std::byte{3});
        const auto run_scale =
            static_cast<float>(std::to_integer<std::int8_t>(scales[run * 2 + i / 16]));
        to[run * 32 + i] = scale * run_scale * static_cast<float>((nibble | upper << 4) - 32);
      }
    }
  }
}

void for_blocks(const Tensor &tensor, std::size_t elements, std::size_t bytes,
                void (*block)(const std::byte *, float *), float *to) {
  const std::byte *from = tensor.bytes.data();
  for (std::size_t i = 0; i < tensor.elements(); i += elements, from += bytes) block(from, to + i);
}

}  // namespace

std::vector<float> dequantize(const Tensor &tensor) {
  std::vector<float> elements(tensor.elements());
  switch (tensor.type) {
    case TensorType::f32:
      std::memcpy(elements.data(), tensor.bytes.data(), tensor.bytes.size());
      break;
    case TensorType::f16:
      for_blocks(
          tensor, 1, 2, [](const std::byte *from, float *to) { *to = read_half(from); },
          elements.data());
      break;
    case TensorType::q4_0:
      for_blocks(tensor, 32, 18, block_q4_0, elements.data());
      break;
    case TensorType::q4_1:
      for_blocks(tensor, 32, 20, block_q4_1, elements.data());
      break;
    case TensorType::q8_0:
      for_blocks(tensor, 32, 34, block_q8_0, elements.data());
      break;
    case TensorType::q6_k:
      for_blocks(tensor, 256, 210, block_q6_k, elements.data());
      break;
  }
  return elements;
}

}  // namespace llama
