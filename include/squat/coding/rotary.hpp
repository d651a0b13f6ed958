#pragma once

// The rotary embedding (Su et al., RoFormer, 2021): what turns keys and queries
// with their position, and the rotary frame of a tile of tokens.
//
// Pair i of a head's channels, seen as a point of the plane, is turned by the
// angle position * inverse_frequencies[i]. R(p) is that turn for position p;
// R(p) R(s) = R(p + s), and q . R(p) k = R(-p) q . k.

#include <Eigen/Core>
#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "squat/coding/rotary_table.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Pairs a head of the greatest head_dim can have.
inline constexpr Index most_rotary_pairs = largest_head_dim / 2;

/// R(p) for one position p, of either sign: cosines and sines, a pair each.
class Turn {
 public:
  Turn(const RotaryTable &table, Index position) : table_(&table) {
    const Index pairs = table.pair_count();
    SQUAT_ASSERT(pairs <= most_rotary_pairs);
    // Whole turns are taken off in double precision; what is left is small.
    constexpr double turn = 2 * std::numbers::pi;
    Eigen::Map<Eigen::ArrayXf> sine(sine_.data(), pairs), cosine(cosine_.data(), pairs);
    for (Index pair = 0; pair < pairs; ++pair) {
      const double frequency =
          static_cast<double>(table.inverse_frequencies[static_cast<std::size_t>(pair)]);
      const double turns = static_cast<double>(position) * frequency / turn;
      sine[pair] = static_cast<float>((turns - std::nearbyint(turns)) * turn);
    }
    cosine = sine.cos();
    sine = sine.sin();
  }

  float cosine(Index pair) const { return cosine_[static_cast<std::size_t>(pair)]; }
  float sine(Index pair) const { return sine_[static_cast<std::size_t>(pair)]; }

  /// Becomes the turn by this one's positions and another's together, of the same
  /// table. Each time adds a rounding error.
  void follow_by(const Turn &other) {
    const Index pairs = table_->pair_count();
    for (Index pair = 0; pair < pairs; ++pair) {
      const auto i = static_cast<std::size_t>(pair);
      const float c = cosine_[i], s = sine_[i];
      cosine_[i] = c * other.cosine_[i] - s * other.sine_[i];
      sine_[i] = s * other.cosine_[i] + c * other.sine_[i];
    }
  }

  /// Turns a row [head_dim] in place.
  void apply(float *row) const {
    const Index pairs = table_->pair_count();
    if (table_->pairs == RotaryPairs::interleaved) {
      for (Index i = 0; i < pairs; ++i) turn_pair(i, row[2 * i], row[2 * i + 1]);
    } else {
      for (Index i = 0; i < pairs; ++i) turn_pair(i, row[i], row[i + pairs]);
    }
  }

  /// Turns every token of channel-major rows [head_dim, tokens] in place.
  void apply_to_channels(float *channels, Index tokens) const {
    for (Index pair = 0; pair < table_->pair_count(); ++pair) {
      const auto [a, b] = table_->channels(pair);
      float *x = channels + a * tokens, *y = channels + b * tokens;
      for (Index token = 0; token < tokens; ++token) turn_pair(pair, x[token], y[token]);
    }
  }

 private:
  void turn_pair(Index pair, float &x, float &y) const {
    const float c = cosine(pair), s = sine(pair);
    const float turned = x * c - y * s;
    y = x * s + y * c;
    x = turned;
  }

  const RotaryTable *table_;
  alignas(64) std::array<float, most_rotary_pairs> cosine_;
  alignas(64) std::array<float, most_rotary_pairs> sine_;
};

/// The rotary frame of tiles of `rows` tokens: row j of a tile is turned by
/// position j, as if the tile began at position 0. It holds cos(j w) and sin(j
/// w) of every pair and row, [2 * pairs, rows].
class TileFrame {
 public:
  TileFrame(RotaryTable table, Index rows) : table_(std::move(table)), rows_(rows) {
    angles_.resize(2 * table_.pair_count(), rows);
    for (Index row = 0; row < rows; ++row) {
      const Turn turn(table_, row);
      for (Index pair = 0; pair < table_.pair_count(); ++pair) {
        angles_(2 * pair, row) = turn.cosine(pair);
        angles_(2 * pair + 1, row) = turn.sine(pair);
      }
    }
  }

  const RotaryTable &table() const { return table_; }
  Index rows() const { return rows_; }
  std::size_t bytes() const { return static_cast<std::size_t>(angles_.size()) * sizeof(float); }

  /// cos and sin of all pairs, row `row` on: [2 * pairs, rows - row], a row of
  /// the matrix `rows()` apart.
  const float *angles(Index row) const { return angles_.data() + row; }
  Index angle_count() const { return 2 * table_.pair_count(); }

  /// channels[c][t] += factor * (R(row + t) mean)_c for channel-major rows
  /// [head_dim, tokens].
  void add_mean(const float *mean, Index head_dim, float factor, Index row, Index tokens,
                float *channels) const {
    const Index pairs = table_.pair_count();
    for (Index pair = 0; pair < pairs; ++pair) {
      const auto [a, b] = table_.channels(pair);
      const float *cosine = angles(row) + 2 * pair * rows_, *sine = cosine + rows_;
      const float x = factor * mean[a], y = factor * mean[b];
      float *to_a = channels + a * tokens, *to_b = channels + b * tokens;
      for (Index token = 0; token < tokens; ++token) {
        to_a[token] += x * cosine[token] - y * sine[token];
        to_b[token] += x * sine[token] + y * cosine[token];
      }
    }
    for (Index i = 2 * pairs; i < head_dim; ++i) {
      float *to = channels + i * tokens;
      for (Index token = 0; token < tokens; ++token) to[token] += factor * mean[i];
    }
  }

 private:
  RotaryTable table_;
  Index rows_;
  RowMatrix angles_;
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
