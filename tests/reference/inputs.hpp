#pragma once

// The inputs of tests/reference/coding.py, number for number.

#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "attention_error.hpp"
#include "rotary_table.hpp"
#include "squat/coding/rotary.hpp"
#include "squat/core/config.hpp"

namespace squat::test {

/// Near-normal numbers: sums of four uniform ones of a linear congruential generator.
class Normal {
 public:
  explicit Normal(std::uint32_t seed) : state_(seed) {}

  Matrix matrix(Eigen::Index rows, Eigen::Index columns) {
    Matrix x(rows, columns);
    for (Eigen::Index i = 0; i < x.size(); ++i) {
      double total = 0;
      for (int term = 0; term < 4; ++term) {
        state_ = state_ * 1664525u + 1013904223u;
        total += state_ / 4294967296.0 - .5;
      }
      x.data()[i] = total * std::sqrt(3.0);
    }
    return x;
  }

 private:
  std::uint32_t state_;
};

/// Queries and keys before the rotary embedding, and values: a [tokens, head_dim] matrix a head.
struct Heads {
  std::vector<Matrix> q, k, v;
};

inline Heads generated_heads() {
  const Eigen::Index tokens = 768, d = 32;
  Normal random(7);
  const Eigen::ArrayXd fall = 1 / Eigen::ArrayXd::LinSpaced(d, 1, static_cast<double>(d));
  const Matrix q_mix = fall.matrix().asDiagonal() * random.matrix(d, d);
  const Matrix k_mix = fall.sqrt().matrix().asDiagonal() * random.matrix(d, d);
  const Matrix bias = 2 * random.matrix(1, d);
  Heads heads;
  for (int head = 0; head < 2; ++head) heads.q.push_back(.6 * random.matrix(tokens, d) * q_mix);
  heads.k.push_back((random.matrix(tokens, d) * k_mix).rowwise() + bias.row(0));
  heads.v.push_back(random.matrix(tokens, d));
  return heads;
}

/// One channel of a model's queries, keys or values: its mean, and its row of the covariance's Cholesky
/// factor in multiples of `step`, of which a digit of base 64 says how many, 32 for none.
struct ChannelMoments {
  double mean, step;
  std::string_view digits;
};

/// [3 layers, queries keys and values, 64 channels]
inline constexpr std::array<ChannelMoments, 3 * 3 * 64> model_moments = {{
#include "model_moments.inc"
}};

/// Two query heads that share a KV head, with the means and covariances of a model's layer 2, 14 or 27.
inline Heads drawn_heads(int layer) {
  constexpr Eigen::Index tokens = 768, d = 64;
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const ChannelMoments *channel = model_moments.data() + (layer == 2 ? 0 : layer == 14 ? 1 : 2) * 3 * d;
  Normal random(static_cast<std::uint32_t>(layer));
  const auto draw = [&](std::vector<Matrix> &heads, int count) {
    Matrix mean(1, d), mix = Matrix::Zero(d, d);
    for (Eigen::Index i = 0; i < d; ++i, ++channel) {
      mean(0, i) = channel->mean;
      for (Eigen::Index j = 0; j <= i; ++j) {
        const std::size_t digit = digits.find(channel->digits[static_cast<std::size_t>(j)]);
        mix(i, j) = (static_cast<double>(digit) - 32) * channel->step;
      }
    }
    for (int head = 0; head < count; ++head) {
      heads.push_back((random.matrix(tokens, d) * mix.transpose()).rowwise() + mean.row(0));
    }
  };
  Heads heads;
  draw(heads.q, 2);
  draw(heads.k, 1);
  draw(heads.v, 1);
  return heads;
}

/// The drawn heads of all layers as the KV heads of one.
inline Heads drawn_layer() {
  Heads all;
  for (int layer : {2, 14, 27}) {
    const Heads heads = drawn_heads(layer);
    all.q.insert(all.q.end(), heads.q.begin(), heads.q.end());
    all.k.insert(all.k.end(), heads.k.begin(), heads.k.end());
    all.v.insert(all.v.end(), heads.v.begin(), heads.v.end());
  }
  return all;
}

/// KV heads of a layer, `shared` query heads each: keys and values of later heads are larger.
inline Heads uneven_heads(int kv_heads, int shared, Eigen::Index d) {
  const Eigen::Index tokens = 640;
  Normal random(11);
  const Eigen::ArrayXd fall = 1 / Eigen::ArrayXd::LinSpaced(d, 1, static_cast<double>(d));
  Heads heads;
  for (int head = 0; head < kv_heads; ++head) {
    const Matrix q_mix = fall.matrix().asDiagonal() * random.matrix(d, d);
    const Matrix k_mix = fall.sqrt().matrix().asDiagonal() * random.matrix(d, d);
    const Matrix bias = random.matrix(1, d);
    for (int i = 0; i < shared; ++i)
      heads.q.push_back((.5 + .25 * head) * random.matrix(tokens, d) * q_mix);
    heads.k.push_back((random.matrix(tokens, d) * k_mix).rowwise() + bias.row(0));
    heads.v.push_back((1 + head) * random.matrix(tokens, d));
  }
  return heads;
}

/// Reads `layerL_X_1024xHx64_f16.bin`, little-endian float16, [1024, H, 64].
inline std::vector<Matrix> load_heads(const std::filesystem::path &directory, int layer, char name,
                                      Eigen::Index count) {
  const std::string file =
      "layer" + std::to_string(layer) + "_" + name + "_1024x" + std::to_string(count) + "x64_f16.bin";
  std::vector<half> elements(static_cast<std::size_t>(1024 * count * 64));
  std::ifstream in(directory / file, std::ios::binary);
  if (!in.read(reinterpret_cast<char *>(elements.data()),
               static_cast<std::streamsize>(elements.size() * sizeof(half)))) {
    throw std::runtime_error("cannot read " + file);
  }
  std::vector<Matrix> heads(static_cast<std::size_t>(count), Matrix(1024, 64));
  for (std::size_t i = 0; i < elements.size(); ++i) {
    const auto row = static_cast<Eigen::Index>(i / 64);
    heads[static_cast<std::size_t>(row % count)](row / count, static_cast<Eigen::Index>(i % 64)) =
        static_cast<double>(elements[i]);
  }
  return heads;
}

/// The rotary embedding of interleaved pairs, base 100000, row i at position i.
inline Matrix rotate(const Matrix &x) {
  Matrix rotated(x.rows(), x.cols());
  for (Eigen::Index t = 0; t < x.rows(); ++t) {
    for (Eigen::Index i = 0; i < x.cols(); i += 2) {
      const double angle = static_cast<double>(t) *
                           std::pow(1e5, -static_cast<double>(i) / static_cast<double>(x.cols()));
      const double c = std::cos(angle), s = std::sin(angle);
      rotated(t, i) = x(t, i) * c - x(t, i + 1) * s;
      rotated(t, i + 1) = x(t, i) * s + x(t, i + 1) * c;
    }
  }
  return rotated;
}

}  // namespace squat::test
