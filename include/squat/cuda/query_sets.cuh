#pragma once

// The queries as pages see them, for all tiles of a batch's contexts: made by a kernel of its own before
// the attention, which reads them with each tile's first page.
//
// A set is what Queries holds for one column tile and one base: the B of the rows that meet a page's
// codes, the weights of the mean key's modes, and the units of the columns. Pages of one base share the
// set of the first of them. One warp makes a set: HeadDim^2 multiply-adds a column, with the head's
// matrices in shared memory.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/attend_call.cuh"
#include "squat/cuda/exact_tiles.cuh"
#include "squat/cuda/transform_queries.cuh"

namespace squat::cuda {

/// A set, in bytes of 16.
template <int HeadDim>
struct QuerySet {
  static constexpr int steps = HeadDim / 16;

  uint2 facing[steps * warp_lanes];  ///< in the basis; turned alone where there is none
  float basis_units[column_count];   ///< times units: those of what meets codes
  float units[column_count];
  uint2 modes[most_mode_tiles * warp_lanes];
  uint2 turned[steps * warp_lanes];  ///< where there is a basis: for pages it did not suit
};

/// Bytes of a set that a page in the basis needs.
template <int HeadDim>
__host__ __device__ constexpr int set_bytes(int mode_tiles) {
  return static_cast<int>(offsetof(QuerySet<HeadDim>, modes)) + mode_tiles * warp_lanes * 8;
}

/// The set of a page.
template <int HeadDim, class S>
__device__ inline QuerySet<HeadDim> *set_of(const AttendCall<S> &call, const EntryStart &start,
                                            int segment, int page_count, int page) {
  const std::int64_t index = start.set + std::int64_t{segment} * page_count + page;
  return static_cast<QuerySet<HeadDim> *>(call.sets) + index;
}

/// The queries of a column tile: rows of the call's tensor.
template <bool Doubled, int HeadDim, class S>
__device__ inline void load_queries(Queries<HeadDim> &queries, const AttendCall<S> &call,
                                    const BatchEntry &entry, int head, int tile) {
  using Element = DeviceElementOf<S>;
  const int heads = call.query_heads / call.kv_heads, rows = entry.tokens * heads;
  queries.template load<Element, Doubled>(
      [&](int column) -> const Element * {
        const int row = tile * column_count + column;
        if (row >= rows) return nullptr;
        return reinterpret_cast<const Element *>(
            call.q.row(entry.first_row + row / heads, head * heads + row % heads));
      },
      call.scale);
}

inline constexpr int set_warps = 8;
inline constexpr int set_threads = set_warps * warp_lanes;

/// Shared memory of the kernel's matrices: A^-T and the projection. Larger heads read them from the
/// caches.
template <int HeadDim>
struct SetMatrices {
  static constexpr bool shared = HeadDim <= 128;
  static constexpr int basis = HeadDim / 16 * (HeadDim / 16) * warp_lanes;
  static constexpr int projection = most_mode_tiles * (HeadDim / 16) * warp_lanes;
  static constexpr int bytes = shared ? (basis + projection) * 16 : 0;
};

template <int HeadDim>
constexpr int set_kernel_bytes() {
  return SetMatrices<HeadDim>::bytes + set_warps * static_cast<int>(sizeof(QueryStorage<HeadDim>));
}

/// One warp's work on the sets of a head.
template <int HeadDim, class S>
struct SetWarp {
  static constexpr int steps = HeadDim / 16;

  const AttendCall<S> &call;
  const BatchEntry &entry;
  const EntryStart &start;
  const LayerState &state;
  const uint4 *basis;
  const uint4 *projection;
  int mode_tiles;
  Queries<HeadDim> queries;

  /// Makes the sets of pages [first, last) of the entry's segments, counted over all of them. Doubled:
  /// two at a time, where columns 4 to 7 have no queries of their own; each is left the other's in its
  /// columns 4 to 7.
  template <bool Doubled>
  __device__ void make(int first, int last) {
    const EntryShape shape(call, entry);
    int loaded = -1;
    for (int index = first; index < last;) {
      const int segment = index / state.page_count;
      const int end =
          min(last, (segment + 1) * state.page_count) - segment * state.page_count;  // of the segment
      int page = next_tile(index - segment * state.page_count, end);
      while (page < end) {
        const int other = Doubled ? next_tile(page + 1, end) : end;
        if (segment != loaded) {
          load_queries<Doubled>(queries, call, entry, segment / shape.tiles,
                                call.first_tile + segment % shape.tiles);
          loaded = segment;
        }
        const bool both = other < end;
        const long long base = state.pages[page].base;
        queries.face(base, both ? state.pages[other].base : base);
        write(set(segment, page), both ? &set(segment, other) : nullptr);
        page = next_tile((both ? other : page) + 1, end);
      }
      index = segment * state.page_count + end;
    }
  }

 private:
  /// The first page from `page` on that is the first of its tile.
  __device__ int next_tile(int page, int end) const {
    while (page < end && state.pages[page].tile_page != 0) ++page;
    return page;
  }

  __device__ QuerySet<HeadDim> &set(int segment, int page) const {
    return *set_of<HeadDim>(call, start, segment, state.page_count, page);
  }

  /// Columns 4 to 7 of what goes to `set` are columns 0 to 3 of `other`.
  __device__ void write(QuerySet<HeadDim> &set, QuerySet<HeadDim> *other) const {
    const int lane = lane_index();
    const auto store = [&](uint2 *to, uint2 *to_other) {
      return [=](int i, uint2 b) {
        to[i * warp_lanes + lane] = b;
        if (to_other != nullptr) to_other[i * warp_lanes + (lane ^ 16)] = b;
      };
    };
    QuerySet<HeadDim> &second = other == nullptr ? set : *other;
    const auto of_both = [&](uint2(QuerySet<HeadDim>::*member)[steps * warp_lanes]) {
      return store(set.*member, other == nullptr ? nullptr : second.*member);
    };
    const auto turned =
        of_both(basis != nullptr ? &QuerySet<HeadDim>::turned : &QuerySet<HeadDim>::facing);
#pragma unroll
    for (int step = 0; step < steps; ++step) turned(step, queries.turned(step));
    float2 units = {1, 1};
    if (basis != nullptr) units = queries.transform_to_basis(basis, of_both(&QuerySet<HeadDim>::facing));
    if (projection != nullptr) {
      queries.transform_to_modes(projection, mode_tiles,
                                 store(set.modes, other == nullptr ? nullptr : second.modes));
    }
    if (lane >= 4) return;
    const auto write_units = [&](QuerySet<HeadDim> &to, int pair) {
      reinterpret_cast<float2 *>(to.basis_units)[pair] = units;
      reinterpret_cast<float2 *>(to.units)[pair] = {queries.unit(0), queries.unit(1)};
    };
    write_units(set, lane);
    if (other != nullptr) write_units(second, lane ^ 2);
  }
};

/// The sets of all segments follow each other and are dealt out to the blocks in equal runs.
template <int HeadDim, class S>
__global__ void __launch_bounds__(set_threads, 2) make_query_sets(const AttendCall<S> call) {
  using Matrices = SetMatrices<HeadDim>;
  extern __shared__ __align__(128) std::uint8_t memory[];
  auto *matrices = reinterpret_cast<uint4 *>(memory);
  auto *storages = reinterpret_cast<QueryStorage<HeadDim> *>(memory + Matrices::bytes);
  auto *starts = reinterpret_cast<EntryStart *>(storages + set_warps);
  find_starts(call, starts);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes;
  const std::int64_t sets = starts[call.entries].set, blocks = gridDim.x, block = blockIdx.x;
  int index = static_cast<int>(sets * block / blocks);
  const int end = static_cast<int>(sets * (block + 1) / blocks);
  while (index < end) {
    const int e = find_entry(starts, call.entries, index, &EntryStart::set);
    const BatchEntry entry = call.batch[e];
    const LayerState &state = *entry.state;
    const int tiles = EntryShape(call, entry).tiles, of_head = tiles * state.page_count;
    const int first = index - starts[e].set, head = first / of_head;
    const int last = min((head + 1) * of_head, end - starts[e].set);
    const HeadTables &tables = call.codings[state.coding].heads[head];
    const uint4 *basis = tables.basis, *projection = tables.projection;
    if constexpr (Matrices::shared) {
      const auto fetch = [&](const uint4 *&matrix, uint4 *to, int count) {
        if (matrix == nullptr) return;
        for (int i = thread; i < count; i += set_threads) to[i] = __ldg(matrix + i);
        matrix = to;
      };
      __syncthreads();
      fetch(basis, matrices, Matrices::basis);
      fetch(projection, matrices + Matrices::basis, tables.mode_tiles * (HeadDim / 16) * warp_lanes);
      __syncthreads();
    }
    const int count = last - first;
    const int from = first + count * warp / set_warps, to = first + count * (warp + 1) / set_warps;
    SetWarp<HeadDim, S> work{
        call,  entry,      starts[e],         state,
        basis, projection, tables.mode_tiles, {storages[warp], &call.codings[state.coding].tiles}};
    const int rows = entry.tokens * (call.query_heads / call.kv_heads);
    rows <= column_count / 2 ? work.template make<true>(from, to) : work.template make<false>(from, to);
    index = starts[e].set + last;
  }
}

}  // namespace squat::cuda
