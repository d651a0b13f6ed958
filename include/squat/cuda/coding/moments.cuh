#pragma once

// The sums that QueryStatistics is made of, on the device.
//
// Tokens whose queries (or keys) are turned back by one base share that turn:
//
//   sum R(-b) x x^T R(b) = R(-b) (sum x x^T) R(b).
//
// So raw_moments() makes sum x x^T of runs of neighbouring tokens of equal bases on the matrix units,
// and turned_moments() turns each of them by its bases, three for queries, and adds them up in double: 3
// d^2 / 2 turns a run instead of one a token and query head. Elements are rounded to float16, products
// are added up in float over at most most_run_rows rows.

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "squat/coding/observation.hpp"
#include "squat/coding/query_statistics.hpp"
#include "squat/cuda/kernels/elements.cuh"
#include "squat/cuda/kernels/rotary.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Bases that a token's queries are turned back by, for the tiles behind them.
inline constexpr int query_bases = Observation::query_bases;

/// Runs of one launch at most, and rows of a run.
inline constexpr int most_runs = 96, most_run_rows = 512;

/// Neighbouring tokens whose queries, or keys, are turned back by the same positions.
struct MomentRun {
  long long bases[query_bases];  ///< keys: one
  std::int32_t first;            ///< token of the call
  std::int32_t tokens;
};

/// Runs of one launch: of queries, then of keys.
struct MomentRuns {
  MomentRun run[most_runs];
  int count;
  int of_queries;  ///< of these, so many
  int bases;       ///< of a run of queries
};

/// triangle_index() of two channels in any order.
__device__ inline long long moment_index(int a, int b) {
  const long long row = max(a, b);
  return row * (row + 1) / 2 + min(a, b);
}

/// The channels that a unit of two turns together; behind the last pair, two that do not turn.
__device__ inline int2 unit_channels(const TileTables &tables, int unit) {
  return unit < tables.pairs ? pair_channels(tables, unit) : int2{2 * unit, 2 * unit + 1};
}

/// The lower half of a moment in regions of 32 x 32, of which a warp has `in_warp`; above 256 channels
/// blocks share them.
template <int HeadDim>
struct MomentShape {
  static constexpr int side = HeadDim / 32, regions = side * (side + 1) / 2;
  static constexpr int in_warp = HeadDim <= 128 ? 1 : 3;
  static constexpr int all_warps = (regions + in_warp - 1) / in_warp;
  static constexpr int blocks = (all_warps + 11) / 12, warps = (all_warps + blocks - 1) / blocks;
  static constexpr int threads = warps * warp_lanes;
  /// Runs of a launch, so that their moments take no more memory than those of 256 channels.
  static constexpr int runs = HeadDim <= 256 ? most_runs : most_runs * 65536 / (HeadDim * HeadDim);
  static constexpr int units = HeadDim / 2, unit_pairs = units * (units + 1) / 2;
  /// Rows that pass through shared memory at a time, and how far one is from the next there, in float16:
  /// so that fragments are read without bank conflicts.
  static constexpr int rows = HeadDim <= 256 ? 32 : 16, stride = HeadDim + 8;
  /// Pieces of eight channels of a row that a thread brings.
  static constexpr int row_pieces = HeadDim / 8;
  static constexpr int pieces = (rows * row_pieces + threads - 1) / threads;
  /// How many times so many rows are on their way.
  template <class S>
  static constexpr int ahead = HeadDim > 128 || sizeof(S) > 2 ? 2 : 3;
  /// Of turned_moments(): threads that share the runs of one pair of units.
  static constexpr int turn_threads = 256, turn_slices = 8, turn_pairs = turn_threads / turn_slices;
};

/// Grid: run, KV head, blocks that share regions. raw [runs, kv_heads, HeadDim, HeadDim], of which the
/// regions on and below the diagonal are written; angles [runs, query_bases, HeadDim / 2]: cosines and
/// sines of the runs' turns. A block reads its rows once; fragments of both sides of x x^T are the rows
/// in shared memory, transposed as they are read.
template <int HeadDim, class S>
__global__ void __launch_bounds__(MomentShape<HeadDim>::threads, HeadDim <= 128 ? 2 : 1)
    raw_moments(MomentRuns runs, DeviceTensor<const S> q, DeviceTensor<const S> k, bool q_aligned,
                bool k_aligned, int heads_per_kv_head, TileTables tables, float *raw, float2 *angles) {
  using Shape = MomentShape<HeadDim>;
  __shared__ alignas(16) std::uint16_t staged[2][Shape::rows][Shape::stride];
  const int index = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y),
            thread = static_cast<int>(threadIdx.x);
  const bool of_queries = index < runs.of_queries;
  const MomentRun &run = runs.run[index];
  if (head == 0 && blockIdx.z == 0) {
    const int bases = of_queries ? runs.bases : 1;
    for (int i = thread; i < bases * Shape::units; i += Shape::threads) {
      const int base = i / Shape::units, unit = i % Shape::units;
      angles[(index * query_bases + base) * Shape::units + unit] =
          unit < tables.pairs ? turn_angle(tables, unit, -run.bases[base]) : float2{1, 0};
    }
  }
  const DeviceTensor<const S> x = of_queries ? q : k;
  const int shared = of_queries ? heads_per_kv_head : 1, rows = run.tokens * shared;
  // 2^32 / shared, rounded up: row / shared is the high word of its product with a row, as long as row *
  // shared is below 2^32. Of 1 it does not fit.
  const unsigned inverse = shared == 1 ? 0 : 0xffffffffu / static_cast<unsigned>(shared) + 1;
  const S *first = x.row(run.first, head * shared);
  using Chunk = EightElements<S>[Shape::pieces];
  constexpr int ahead = Shape::template ahead<S>;
  Chunk next[ahead];
  const auto fetch = [&](int first_row, Chunk &chunk, bool aligned) {
#pragma unroll
    for (int i = 0; i < Shape::pieces; ++i) {
      const int piece = i * Shape::threads + thread, row = first_row + piece / Shape::row_pieces;
      const bool is = piece < Shape::rows * Shape::row_pieces && row < rows;
      const int token =
          shared == 1 ? row : static_cast<int>(__umulhi(static_cast<unsigned>(row), inverse));
      const S *from = first + token * x.token_stride + (row - token * shared) * x.head_stride +
                      piece % Shape::row_pieces * 8;
      chunk[i] = is ? EightElements<S>(from, aligned) : EightElements<S>();
    }
  };
  const auto put = [&](const Chunk &chunk, int buffer) {
#pragma unroll
    for (int i = 0; i < Shape::pieces; ++i) {
      const int piece = i * Shape::threads + thread;
      if (piece >= Shape::rows * Shape::row_pieces) break;
      std::uint16_t *to = &staged[buffer][piece / Shape::row_pieces][piece % Shape::row_pieces * 8];
      *reinterpret_cast<uint4 *>(to) = chunk[i].halves();
    }
  };

  const int warp = thread / warp_lanes, lane = lane_index(), g = lane / 4, t = lane % 4;
  const int first_region = (static_cast<int>(blockIdx.z) * Shape::warps + warp) * Shape::in_warp;
  int2 region[Shape::in_warp];
#pragma unroll
  for (int i = 0; i < Shape::in_warp; ++i) {
    int row = 0, column = min(first_region + i, Shape::regions - 1);
    for (; column > row; ++row) column -= row + 1;
    region[i] = {row, column};
  }
  float sums[Shape::in_warp][2][4][4] = {};
  // Rows of 16 channels and as many tokens, as four matrices: both halves of the channels of eight
  // tokens, then of the next eight.
  const int lane_place = (lane / 16 * 8 + lane % 8) * Shape::stride + lane / 8 % 2 * 8;
  const auto multiply = [&](int buffer) {
    const Word from = shared_address(&staged[buffer][0][lane_place]);
#pragma unroll
    for (int row = 0; row < Shape::rows; row += 16) {
#pragma unroll
      for (int i = 0; i < Shape::in_warp; ++i) {
        const auto load = [&](int channel) {
          return load_transposed(from + static_cast<Word>((row * Shape::stride + channel) * 2));
        };
        uint4 a[2];
#pragma unroll
        for (int m = 0; m < 2; ++m) a[m] = load(region[i].x * 32 + m * 16);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const uint4 b = load(region[i].y * 32 + n * 16);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply_add(sums[i][m][2 * n], a[m].x, a[m].y, a[m].z, a[m].w, b.x, b.z);
            multiply_add(sums[i][m][2 * n + 1], a[m].x, a[m].y, a[m].z, a[m].w, b.y, b.w);
          }
        }
      }
    }
  };
  // Two loops: one that asked whether rows are aligned would wait for what it loads ahead.
  const auto add_rows = [&]<bool Aligned>() {
#pragma unroll
    for (int i = 0; i < ahead; ++i) fetch(i * Shape::rows, next[i], Aligned);
    for (int first_row = 0; first_row < rows;) {
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        if (first_row >= rows) break;
        const int buffer = first_row / Shape::rows % 2;
        put(next[i], buffer);
        fetch(first_row + ahead * Shape::rows, next[i], Aligned);
        __syncthreads();  // and nobody reads the other buffer, which is written next
        multiply(buffer);
        first_row += Shape::rows;
      }
    }
  };
  if (of_queries ? q_aligned : k_aligned) {
    add_rows.template operator()<true>();
  } else {
    add_rows.template operator()<false>();
  }
  float *to = raw + (static_cast<long long>(index) * gridDim.y + head) * (HeadDim * HeadDim);
#pragma unroll
  for (int i = 0; i < Shape::in_warp; ++i) {
    if (first_region + i >= Shape::regions) break;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float *at = to + (region[i].x * 32 + m * 16 + g) * HeadDim + region[i].y * 32 + n * 8 + 2 * t;
        const float(&c)[4] = sums[i][m][n];
        *reinterpret_cast<float2 *>(at) = {c[0], c[1]};
        *reinterpret_cast<float2 *>(at + 8 * HeadDim) = {c[2], c[3]};
      }
    }
  }
  wait_for_launches();  // what follows moments follows the sums of keys, too
}

/// Adds the runs' moments to the sums of their heads, each turned back by every base of its run. Grid:
/// pairs of units / turn_pairs, KV head, queries or keys; turn_slices threads share the two channels of
/// one unit by those of another (or the same), and so elements of the triangle that no others have.
///
/// Unit i meets the i + 1 units up to itself, and unit units - 1 - i the units - i up to itself:
/// together units + 1, which are the rows that the threads are counted in.
template <int HeadDim>
__global__ void __launch_bounds__(MomentShape<HeadDim>::turn_threads)
    turned_moments(MomentRuns runs, TileTables tables, const float *raw, const float2 *angles,
                   HeadSums layout, double *doubles, float *floats) {
  using Shape = MomentShape<HeadDim>;
  static_assert(Shape::units % 2 == 0);
  __shared__ double partial[Shape::turn_slices][4][Shape::turn_pairs];
  const int thread = static_cast<int>(threadIdx.x), own = thread % Shape::turn_pairs,
            slice = thread / Shape::turn_pairs, head = static_cast<int>(blockIdx.y);
  const int index = static_cast<int>(blockIdx.x) * Shape::turn_pairs + own;
  const bool is = index < Shape::unit_pairs;
  const int fold = index / (Shape::units + 1), place = index % (Shape::units + 1);
  const bool of_long = place < Shape::units - fold;
  const int i = of_long ? Shape::units - 1 - fold : fold,
            j = of_long ? place : place - (Shape::units - fold);
  const int2 row = unit_channels(tables, i), column = unit_channels(tables, j);
  const auto element = [](int a, int b) { return a / 32 >= b / 32 ? a * HeadDim + b : b * HeadDim + a; };
  const int xx = element(row.x, column.x), xy = element(row.x, column.y);
  const int yx = element(row.y, column.x), yy = element(row.y, column.y);
  double total[4] = {};
  const bool of_queries = blockIdx.z == 0;
  const int end = of_queries ? runs.of_queries : runs.count;
  const auto add_runs = [&]<int Bases>() {
#pragma unroll 4
    for (int n = slice + (of_queries ? 0 : runs.of_queries); n < end; n += Shape::turn_slices) {
      const float *m = raw + (static_cast<long long>(n) * gridDim.y + head) * (HeadDim * HeadDim);
      const float2 x = {m[xx], m[xy]}, y = {m[yx], m[yy]};
#pragma unroll
      for (int base = 0; base < Bases; ++base) {
        const float2 *turn = angles + (n * query_bases + base) * Shape::units;
        const float2 of_row = turn[i], of_column = turn[j];
        const float2 left = turn_pair(of_row, {x.x, y.x}), right = turn_pair(of_row, {x.y, y.y});
        const float2 top = turn_pair(of_column, {left.x, right.x}),
                     bottom = turn_pair(of_column, {left.y, right.y});
        total[0] += top.x;
        total[1] += top.y;
        total[2] += bottom.x;
        total[3] += bottom.y;
      }
    }
  };
  if (is && of_queries && runs.bases == query_bases) {
    add_runs.template operator()<query_bases>();
  } else if (is) {
    add_runs.template operator()<1>();
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) partial[slice][k][own] = total[k];
  __syncthreads();
  if (slice > 0 || !is) return;
#pragma unroll
  for (int other = 1; other < Shape::turn_slices; ++other) {
#pragma unroll
    for (int k = 0; k < 4; ++k) total[k] += partial[other][k][own];
  }
  const auto add = [&](auto *to) {
    const auto add_to = [&](int a, int b, double sum) {
      auto &at = to[moment_index(a, b)];
      at = static_cast<std::remove_reference_t<decltype(at)>>(at + sum);
    };
    add_to(row.x, column.x, total[0]);
    if (i != j) add_to(row.x, column.y, total[1]);  // of one unit it is the next element
    add_to(row.y, column.x, total[2]);
    add_to(row.y, column.y, total[3]);
  };
  if (of_queries) {
    add(floats + head * layout.floats + layout.query_moment.first);
  } else {
    add(doubles + head * layout.doubles + layout.key_moment.first);
  }
}

/// Consecutive keys of a call, and values: the first stands at `position`, in row `row` of its tile.
struct ObservedKeys {
  long long first;  ///< row of the tensor
  int tokens;
  int row;
  long long position;
};

/// How add_row_sums() is launched: threads of two channels each, by rows of the tile frame.
template <int HeadDim>
struct RowSumShape {
  static constexpr int units = HeadDim / 2, rows = 512 / units, threads = units * rows;
  /// Blocks that share the keys where there is no frame.
  static constexpr int slices = 32;
};

/// Adds each row's keys, turned back by their tiles' bases, to the sums of their row and of all rows.
/// Grid: rows / RowSumShape::rows, KV head. Without a frame all keys are of one row, whose sum is that
/// of all: threads have every so-manieth then. Rows meet in the sum of all: doubles, which hold sums of
/// floats to their last bits in any order.
template <int HeadDim, class S>
__global__ void __launch_bounds__(RowSumShape<HeadDim>::threads)
    add_row_sums(DeviceTensor<const S> k, ObservedKeys keys, TileTables tables, HeadSums layout,
                 double *doubles, float *floats) {
  using Shape = RowSumShape<HeadDim>;
  __shared__ double2 partial[Shape::rows][Shape::units];
  allow_next_launch();
  const int thread = static_cast<int>(threadIdx.x), unit = thread % Shape::units,
            own = thread / Shape::units;
  const int row = static_cast<int>(blockIdx.x) * Shape::rows + own, head = static_cast<int>(blockIdx.y);
  const bool framed = tables.frame > 0;
  const int step = framed ? tables.frame : static_cast<int>(gridDim.x) * Shape::rows;
  const int first = framed ? (row - keys.row + step) % step : row;
  const int2 channels = unit_channels(tables, unit);
  const bool turns = framed && unit < tables.pairs;
  const std::uint64_t turn = turns ? tables.turns[unit] : 0;
  double2 sum = {0, 0};
  if (!framed || row < step) {
    constexpr int together = 8;
    for (int token = first; token < keys.tokens; token += together * step) {
      float2 x[together] = {};
#pragma unroll
      for (int i = 0; i < together; ++i) {
        if (token + i * step >= keys.tokens) break;
        const S *from = k.row(keys.first + token + i * step, head);
        x[i] = {load_element(from + channels.x), load_element(from + channels.y)};
      }
#pragma unroll
      for (int i = 0; i < together; ++i) {
        if (turns) x[i] = turn_pair(turn_back(turn, keys.position + token + i * step - row), x[i]);
        sum = {sum.x + x[i].x, sum.y + x[i].y};
      }
    }
    if (framed) {
      float *to = floats + head * layout.floats + layout.row_sums.first + row * HeadDim;
      to[channels.x] = static_cast<float>(to[channels.x] + sum.x);
      to[channels.y] = static_cast<float>(to[channels.y] + sum.y);
    }
  }
  partial[own][unit] = sum;
  __syncthreads();
  if (own != 0) return;
  for (int other = 1; other < Shape::rows; ++other) {
    sum = {sum.x + partial[other][unit].x, sum.y + partial[other][unit].y};
  }
  double *to_all = doubles + head * layout.doubles + layout.key_sum.first;
  atomicAdd(to_all + channels.x, sum.x);
  atomicAdd(to_all + channels.y, sum.y);
  wait_for_launches();  // and what follows these the sums of values
}

/// How add_value_sums() is launched: threads of eight channels each, by rows.
template <int HeadDim>
struct ValueSumShape {
  static constexpr int row_pieces = HeadDim / 8, rows = 256 / row_pieces, threads = rows * row_pieces;
  /// Blocks that share the values of a head.
  static constexpr int slices = 32;
};

/// Adds values to their sum. Grid: slices of the tokens, KV head.
template <int HeadDim, class S>
__global__ void __launch_bounds__(ValueSumShape<HeadDim>::threads)
    add_value_sums(DeviceTensor<const S> v, bool aligned, ObservedKeys keys, HeadSums layout,
                   double *doubles) {
  using Shape = ValueSumShape<HeadDim>;
  __shared__ double partial[Shape::rows][HeadDim];
  allow_next_launch();
  const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.y);
  const int own = thread / Shape::row_pieces, first_channel = thread % Shape::row_pieces * 8;
  double sums[8] = {};
  const auto add_rows = [&]<bool Aligned>() {
#pragma unroll 4
    for (int token = static_cast<int>(blockIdx.x) * Shape::rows + own; token < keys.tokens;
         token += static_cast<int>(gridDim.x) * Shape::rows) {
      const EightElements<S> x(v.row(keys.first + token, head) + first_channel, Aligned);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] += x[i];
    }
  };
  if (aligned) {
    add_rows.template operator()<true>();
  } else {
    add_rows.template operator()<false>();
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) partial[own][first_channel + i] = sums[i];
  __syncthreads();
  for (int channel = thread; channel < HeadDim; channel += Shape::threads) {
    double sum = 0;
#pragma unroll
    for (int row = 0; row < Shape::rows; ++row) sum += partial[row][channel];
    atomicAdd(doubles + head * layout.doubles + layout.value_sum.first + channel, sum);
  }
}

/// Adds the ranges of the groups that these keys fill; the group that is filling stands in one of two
/// [kv_heads, HeadDim] pairs of extremes, from which the first block reads and to the other of which the
/// last one writes. Grid: group that is touched, KV head. Ranges are floats, and doubles hold sums of
/// 2^29 of them exactly, in any order.
template <int HeadDim, class S>
__global__ void add_key_ranges(DeviceTensor<const S> k, ObservedKeys keys, int group, int in_group,
                               const float2 *filling, float2 *filling_next, HeadSums layout,
                               double *doubles) {
  const int piece = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int channel = static_cast<int>(threadIdx.x);
  const int begin = max(piece * group - in_group, 0),
            end = min((piece + 1) * group - in_group, keys.tokens);
  float low = load_element(k.row(keys.first + begin, head) + channel), high = low;
#pragma unroll 8
  for (int token = begin + 1; token < end; ++token) {
    const float x = load_element(k.row(keys.first + token, head) + channel);
    low = fminf(low, x);
    high = fmaxf(high, x);
  }
  if (piece == 0 && in_group > 0) {
    const float2 before = filling[head * HeadDim + channel];
    low = fminf(low, before.x);
    high = fmaxf(high, before.y);
  }
  if ((piece + 1) * group - in_group <= keys.tokens) {
    atomicAdd(doubles + head * layout.doubles + layout.key_range.first + channel,
              static_cast<double>(high - low));
  } else {
    filling_next[head * HeadDim + channel] = {low, high};
  }
}

}  // namespace squat::cuda
