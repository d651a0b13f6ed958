#include "dequantize.hpp"

#include <Eigen/Core>
#include <bit>
#include <cstdint>
#include <cstring>

namespace engine {
namespace {

template <class Scalar>
Scalar read(const std::byte *from) {
  Scalar value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float read_half(const std::byte *from) { return static_cast<float>(read<Eigen::half>(from)); }
float read_signed(std::byte byte) { return static_cast<float>(std::to_integer<std::int8_t>(byte)); }

int low(std::byte byte) { return std::to_integer<int>(byte & std::byte{15}); }
int high(std::byte byte) { return std::to_integer<int>(byte >> 4); }
int bit(std::uint32_t bits, int place) { return static_cast<int>(bits >> place & 1); }

void block_f32(const std::byte *block, float *to) { *to = read<float>(block); }
void block_f16(const std::byte *block, float *to) { *to = read_half(block); }

/// The upper half of a float.
void block_bf16(const std::byte *block, float *to) {
  *to = std::bit_cast<float>(std::uint32_t{read<std::uint16_t>(block)} << 16);
}

// Blocks of 32: scales as float16 first, then fifth bits, then quants. 4-bit quants i and i + 16 share a
// byte.

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

void block_q5_0(const std::byte *block, float *to) {
  const float scale = read_half(block);
  const auto fifth = read<std::uint32_t>(block + 2);
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * static_cast<float>((low(block[6 + i]) | bit(fifth, i) << 4) - 16);
    to[i + 16] = scale * static_cast<float>((high(block[6 + i]) | bit(fifth, i + 16) << 4) - 16);
  }
}

void block_q5_1(const std::byte *block, float *to) {
  const float scale = read_half(block), least = read_half(block + 2);
  const auto fifth = read<std::uint32_t>(block + 4);
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * static_cast<float>(low(block[8 + i]) | bit(fifth, i) << 4) + least;
    to[i + 16] = scale * static_cast<float>(high(block[8 + i]) | bit(fifth, i + 16) << 4) + least;
  }
}

void block_q8_0(const std::byte *block, float *to) {
  const float scale = read_half(block);
  for (int i = 0; i < 32; ++i) to[i] = scale * read_signed(block[2 + i]);
}

// Blocks of 256 (K quants): runs of 32 elements or of 16 have a scale each, itself a small integer.

/// Scale and least value of the runs of 32, 6 bits each: 12 bytes that hold those of runs 0 to 3 in
/// their first bytes' lower 6 bits, and those of runs 4 to 7 in the nibbles of the last four and in the
/// two bits left over.
struct RunRange {
  RunRange(const std::byte *packed, int run) {
    const auto byte = [&](int at) { return std::to_integer<int>(packed[at]); };
    scale = run < 4 ? byte(run) & 63 : (byte(run + 4) & 15) | (byte(run - 4) >> 6) << 4;
    least = run < 4 ? byte(run + 4) & 63 : byte(run + 4) >> 4 | (byte(run) >> 6) << 4;
  }
  int scale, least;
};

/// Two float16 scales (of scales and of least values), 12 bytes of both, 32 bytes of fifth bits if
/// `FifthBits`, 128 bytes of nibbles. Runs 2 j and 2 j + 1 share the j-th 32 bytes of nibbles; bit r of
/// a byte of fifth bits belongs to run r.
template <bool FifthBits>
void block_q45_k(const std::byte *block, float *to) {
  const float scale = read_half(block), least_scale = read_half(block + 2);
  const std::byte *fifths = block + 16;
  const std::byte *nibbles = fifths + (FifthBits ? 32 : 0);
  for (int run = 0; run < 8; ++run) {
    const RunRange range(block + 4, run);
    const float step = scale * static_cast<float>(range.scale);
    const float least = least_scale * static_cast<float>(range.least);
    for (int i = 0; i < 32; ++i) {
      const std::byte both = nibbles[run / 2 * 32 + i];
      int code = run % 2 == 0 ? low(both) : high(both);
      if (FifthBits) code |= bit(std::to_integer<std::uint32_t>(fifths[i]), run) << 4;
      to[run * 32 + i] = step * static_cast<float>(code) - least;
    }
  }
}

/// 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales of runs of 16, one float16
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
        to[run * 32 + i] = scale * read_signed(scales[run * 2 + i / 16]) *
                           static_cast<float>((nibble | upper << 4) - 32);
      }
    }
  }
}

/// `block` is a parameter of the type, so that the loop over blocks of one element is one.
template <void (*block)(const std::byte *, float *)>
void for_blocks(Block size, const std::byte *from, std::span<float> to) {
  for (std::size_t i = 0; i < to.size(); i += size.elements, from += size.bytes)
    block(from, to.data() + i);
}

}  // namespace

void dequantize(const Tensor &tensor, std::size_t first, std::span<float> to) {
  const Block size = block_of(tensor.type);
  const std::byte *from = tensor.bytes.data() + first / size.elements * size.bytes;
  switch (tensor.type) {
    case TensorType::f32:
      return for_blocks<block_f32>(size, from, to);
    case TensorType::f16:
      return for_blocks<block_f16>(size, from, to);
    case TensorType::bf16:
      return for_blocks<block_bf16>(size, from, to);
    case TensorType::q4_0:
      return for_blocks<block_q4_0>(size, from, to);
    case TensorType::q4_1:
      return for_blocks<block_q4_1>(size, from, to);
    case TensorType::q5_0:
      return for_blocks<block_q5_0>(size, from, to);
    case TensorType::q5_1:
      return for_blocks<block_q5_1>(size, from, to);
    case TensorType::q8_0:
      return for_blocks<block_q8_0>(size, from, to);
    case TensorType::q4_k:
      return for_blocks<block_q45_k<false>>(size, from, to);
    case TensorType::q5_k:
      return for_blocks<block_q45_k<true>>(size, from, to);
    case TensorType::q6_k:
      return for_blocks<block_q6_k>(size, from, to);
  }
}

std::vector<float> dequantize(const Tensor &tensor) {
  std::vector<float> elements(tensor.elements());
  dequantize(tensor, 0, elements);
  return elements;
}

}  // namespace engine
