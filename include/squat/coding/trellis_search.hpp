#pragma once

// The path of least squared error through the trellis of a circular row (trellis.hpp): Viterbi's
// algorithm, for as many rows side by side as a vector of 16-bit costs has lanes.
//
// A state is a window without its oldest code. The cost of the best path to a state s is
//
//   cost'_s = min over o of cost_(o, s >> step) + distance_index(o, s)
//
// with o the code that leaves the window. Costs carry o in their low bits, so that the minimum names it:
// the decision from which the path is read backwards. Where a circular row is entered is found first: a
// search through `seam_reach` elements on either side of its end, free at both ends, says in which state
// the row ends and begins.
//
// Distances are held to most_distance. Any state follows any other within reach_steps, so that costs
// differ by at most reach_steps * most_distance, and what a search must not begin with is given one
// more; the largest sum is (2 * reach_steps + 1) * most_distance + 1, times 2^step, below 2^16.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <utility>

#include "squat/coding/trellis.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Rows of a search.
#if defined(SQUAT_CPU_AVX512)
inline constexpr Index search_rows = 32;
#elif defined(SQUAT_CPU_AVX2)
inline constexpr Index search_rows = 16;
#else
inline constexpr Index search_rows = 8;
#endif

}  // namespace squat::inline SQUAT_CPU_NAMESPACE

namespace squat::detail::inline SQUAT_CPU_NAMESPACE {

/// A number of each row of a search.
typedef std::uint16_t Costs __attribute__((vector_size(2 * search_rows)));
typedef std::int16_t Differences __attribute__((vector_size(2 * search_rows)));

/// One number for all rows. nvcc's front end does not bear arithmetic of constant vectors.
inline Costs all_rows(std::uint16_t x) {
  Costs rows = {};
  return rows + x;
}
inline Differences all_rows(std::int16_t x) {
  Differences rows = {};
  return rows + x;
}

/// Elements on either side of a row's end that decide in which state it ends.
inline constexpr Index seam_reach = 32;

/// Steps of a level that elements are rounded to.
inline constexpr int element_steps = 4;

/// The search through codes of one width.
template <int Bits>
struct SearchRule {
  static constexpr TrellisCode code = trellis_code(Bits);
  static constexpr int step = code.step, choices = 1 << step;
  static constexpr int states = 1 << (window_bits - step);
  static constexpr int oldest_shift = window_bits - 2 * step;  // of a state's oldest code
  static constexpr int reach_steps = window_bits / step - 1;
  static constexpr int states_of_a_word = 16 / step;

  // Differences between elements and levels, in quarters of a level, are held to `most_difference` and
  // their squares shifted right: a distance counts in 1/197 of a Gaussian's variance, 1/562 at 3 bits.
  static constexpr int most_difference = Bits == 3 ? 96 : 180;
  static constexpr int distance_shift = Bits == 3 ? 2 : 4;
  static constexpr int most_distance = most_difference * most_difference >> distance_shift;
  static_assert(((2 * reach_steps + 1) * most_distance + 2) << step <= 1 << 16);

  /// What elements are held to, in quarters of a level.
  static constexpr int most_element = element_steps * largest_level + most_difference * 2 / 3;

  static constexpr unsigned window(int oldest, int state) {
    return static_cast<unsigned>(oldest << (window_bits - step) | state);
  }

  /// Of a state and the code that leaves the window.
  static constexpr auto indices = [] {
    std::array<std::array<std::uint8_t, choices>, states> table{};
    for (int state = 0; state < states; ++state) {
      for (int oldest = 0; oldest < choices; ++oldest) {
        table[static_cast<std::size_t>(state)][static_cast<std::size_t>(oldest)] =
            static_cast<std::uint8_t>(trellis_index(window(oldest, state)));
      }
    }
    return table;
  }();
};

/// Words of 16 bits that hold the decisions of one element.
inline constexpr Index decision_words = 8;

}  // namespace squat::detail::inline SQUAT_CPU_NAMESPACE

namespace squat::inline SQUAT_CPU_NAMESPACE {

/// Searches rows of up to `longest` elements, in memory that is handed over.
class TrellisSearch {
  using Costs = detail::Costs;
  using Differences = detail::Differences;

 public:
  /// Of memory, aligned to 64 bytes.
  static constexpr Index bytes(Index longest) {
    return (longest + std::max(longest, 2 * detail::seam_reach) * detail::decision_words) *
           Index{sizeof(Costs)};
  }

  TrellisSearch(void *memory, Index longest)
      : elements_(static_cast<Differences *>(memory)),
        decisions_(static_cast<Costs *>(memory) + longest) {}

  /// Sets element i of a row, in levels.
  template <int Bits>
  void set(Index row, Index i, float x) {
    constexpr auto most = static_cast<float>(detail::SearchRule<Bits>::most_element);
    elements_[i][row] =
        static_cast<std::int16_t>(std::lrint(std::clamp(detail::element_steps * x, -most, most)));
  }

  /// The codes and levels of the first `rows` rows of `count` elements that were set, each [rows,
  /// count].
  template <int Bits>
  void run(Index rows, Index count, std::uint8_t *codes, std::int8_t *levels) {
    using Rule = detail::SearchRule<Bits>;
    Costs costs[Rule::states];
    std::array<int, search_rows> seam;
    begin_anywhere<Bits>(costs);
    advance<Bits>(costs, count, count - detail::seam_reach % count, 2 * detail::seam_reach);
    best_states<Bits>(costs, seam);
    for (Index step = 2 * detail::seam_reach; step-- > detail::seam_reach;) {
      for (Index row = 0; row < rows; ++row) step_back<Bits>(step, row, seam);
    }
    begin_at<Bits>(seam, costs);
    advance<Bits>(costs, count, 0, count);
    for (Index i = count; i-- > 0;) {
      for (Index row = 0; row < rows; ++row) {
        const Index at = row * count + i;
        const auto code = seam[static_cast<std::size_t>(row)] & (Rule::choices - 1);
        const unsigned index = trellis_index(step_back<Bits>(i, row, seam));
        const bool high = Bits == 3 && takes_high<Bits>(elements_[i][row], index);
        codes[at] = static_cast<std::uint8_t>(code | (high ? 4 : 0));
        levels[at] = Rule::code.levels[index + (high ? 16 : 0)];
      }
    }
  }

 private:
  /// Whether the third bit brings the level nearer.
  template <int Bits>
  static bool takes_high(int x, unsigned index) {
    const auto distance = [&](unsigned i) {
      return std::abs(x - detail::element_steps * detail::SearchRule<Bits>::code.levels[i]);
    };
    return distance(index + 16) < distance(index);
  }

  /// The window of an element of one row, whose state `states` hold; they go one element back.
  template <int Bits>
  unsigned step_back(Index i, Index row, std::array<int, search_rows> &states) const {
    using Rule = detail::SearchRule<Bits>;
    int &state = states[static_cast<std::size_t>(row)];
    const Index word = i * detail::decision_words + state / Rule::states_of_a_word;
    const int decisions = decisions_[word][row];
    const int oldest = decisions >> (state % Rule::states_of_a_word * Rule::step) & (Rule::choices - 1);
    const unsigned window = Rule::window(oldest, state);
    state = static_cast<int>(window >> Rule::step);
    return window;
  }

  template <int Bits>
  static void begin_anywhere(Costs *costs) {
    using Rule = detail::SearchRule<Bits>;
    for (int state = 0; state < Rule::states; ++state) {
      costs[state] = detail::all_rows(static_cast<std::uint16_t>(state >> Rule::oldest_shift));
    }
  }

  template <int Bits>
  static void begin_at(const std::array<int, search_rows> &first, Costs *costs) {
    using Rule = detail::SearchRule<Bits>;
    constexpr int never = (Rule::reach_steps * Rule::most_distance + 1) << Rule::step;
    begin_anywhere<Bits>(costs);
    for (int state = 0; state < Rule::states; ++state) {
      for (Index row = 0; row < search_rows; ++row) {
        if (state == first[static_cast<std::size_t>(row)]) continue;
        costs[state][row] = static_cast<std::uint16_t>(costs[state][row] + never);
      }
    }
  }

  template <int Bits>
  static void best_states(const Costs *costs, std::array<int, search_rows> &best) {
    for (Index row = 0; row < search_rows; ++row) {
      int &state = best[static_cast<std::size_t>(row)];
      state = 0;
      for (int s = 1; s < detail::SearchRule<Bits>::states; ++s) {
        if (costs[s][row] < costs[state][row]) state = s;
      }
    }
  }

  /// The distances of an element of every row to the nearest level of each index, times 2^step, less
  /// `base`.
  template <int Bits>
  void distances(Index i, Costs base, Costs (&to)[16]) const {
    using Rule = detail::SearchRule<Bits>;
    constexpr std::int16_t most = Rule::most_difference, least = -most;
    const Differences x = elements_[i];
    const auto square = [&](std::size_t level) {
      // Unsigned: rows that were not set hold anything, and their differences may wrap.
      auto difference = (Differences)((Costs)x - static_cast<std::uint16_t>(detail::element_steps *
                                                                            Rule::code.levels[level]));
      difference = difference < least ? detail::all_rows(least) : difference;
      difference = difference > most ? detail::all_rows(most) : difference;
      return difference * difference;
    };
    for (std::size_t index = 0; index < 16; ++index) {
      Differences nearest = square(index);
      if constexpr (Bits == 3) {
        const Differences other = square(index + 16);
        nearest = other < nearest ? other : nearest;
      }
      to[index] = ((Costs)nearest >> Rule::distance_shift << Rule::step) - base;
    }
  }

  /// Goes on through `steps` elements of circular rows, from `first` on, and writes their decisions.
  template <int Bits>
  void advance(Costs *costs, Index count, Index first, Index steps) {
    using Rule = detail::SearchRule<Bits>;
    Costs others[Rule::states], *from = costs, *to = others, least = {};
    for (Index i = 0; i < steps; ++i) {
      Costs distance[16];
      distances<Bits>((first + i) % count, least & static_cast<std::uint16_t>(-Rule::choices), distance);
      least = advance_states<Bits>(from, distance, to, decisions_ + i * detail::decision_words);
      std::swap(from, to);
    }
    if (from != costs) std::copy_n(from, Rule::states, costs);
  }

  /// Returns the least cost of each row.
  template <int Bits>
  static Costs advance_states(const Costs *costs, const Costs *distance, Costs *next, Costs *decisions) {
    using Rule = detail::SearchRule<Bits>;
    constexpr auto low = static_cast<std::uint16_t>(Rule::choices - 1);
    Costs least = detail::all_rows(std::numeric_limits<std::uint16_t>::max());
    for (int state = 0; state < Rule::states;) {
      Costs decided = {};
      for (int shift = 0; shift < 16; shift += Rule::step, ++state) {
        const Costs *before = costs + (state >> Rule::step);
        const auto &indices = Rule::indices[static_cast<std::size_t>(state)];
        Costs best = before[0] + distance[indices[0]];
        for (std::size_t oldest = 1; oldest < Rule::choices; ++oldest) {
          best = smaller(best, before[oldest << Rule::oldest_shift] + distance[indices[oldest]]);
        }
        least = smaller(least, best);
        decided |= (best & low) << static_cast<std::uint16_t>(shift);
        next[state] = (best & static_cast<std::uint16_t>(~low)) |
                      static_cast<std::uint16_t>(state >> Rule::oldest_shift);
      }
      *decisions++ = decided;
    }
    return least;
  }

  static Costs smaller(Costs a, Costs b) { return a < b ? a : b; }

  Differences *elements_;  // [longest], in quarters of a level
  Costs *decisions_;       // [elements, decision_words]
};

}  // namespace squat::inline SQUAT_CPU_NAMESPACE
