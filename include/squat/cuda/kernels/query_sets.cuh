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

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/transform_queries.cuh"
#include "squat/cuda/page/exact_tiles.cuh"

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

/// Where the query of a column stands, of an entry whose tokens' rows begin at first_row and that has so
/// many `columns`; null for those it has not.
template <class S>
__device__ inline const DeviceElementOf<S> *query_of(const AttendCall<S> &call, int first_row,
                                                     int columns, int head, int column) {
  const int heads = call.query_heads / call.kv_heads;
  if (column >= columns) return nullptr;
  return reinterpret_cast<const DeviceElementOf<S> *>(
      call.q.row(first_row + column / heads, head * heads + column % heads));
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

/// The set of the first page of a tile, for one column tile of an entry.
struct SetJob {
  long long base;
  std::int64_t set;        // among all
  std::int32_t first_row;  // the entry's first, of the call's tensors
  std::int32_t first;      // column
  std::int32_t columns;    // of the entry
};

/// One warp's work on the sets of a head.
template <int HeadDim, class S>
struct SetWarp {
  static constexpr int steps = HeadDim / 16;
  using Set = QuerySet<HeadDim>;

  const AttendCall<S> &call;
  int head;
  const uint4 *basis;
  const uint4 *projection;
  int mode_tiles;
  Queries<HeadDim> queries;

  /// Makes the sets of `count` jobs of at most column_count / runs columns each, runs being 1, 2 or 4:
  /// each has a run of the columns. The columns of a set that are not its own hold the other sets',
  /// which nobody reads.
  __device__ void make(const SetJob *jobs, int count, int runs) {
    const int run_columns = column_count / runs;
    const auto job_of = [&](int run) -> const SetJob & { return jobs[min(run, count - 1)]; };
    queries.template load<DeviceElementOf<S>>(
        [&](int column) {
          const SetJob &job = job_of(column / run_columns);
          return query_of(call, job.first_row, job.columns, head, job.first + column % run_columns);
        },
        call.scale);
    queries.face([&](int run) { return job_of(run).base; }, runs);
    write(jobs, count, run_columns);
  }

 private:
  __device__ void write(const SetJob *jobs, int count, int run_columns) const {
    const int lane = lane_index();
    auto *sets = static_cast<Set *>(call.sets);
    Set *of_job[most_bases];
#pragma unroll
    for (int job = 0; job < most_bases; ++job) of_job[job] = sets + jobs[min(job, count - 1)].set;
    // A run's columns become the first: lanes that hold B's columns g, four each.
    const auto store = [&](const uint2 *member) {
      const auto offset =
          reinterpret_cast<const std::uint8_t *>(member) - static_cast<std::uint8_t *>(call.sets);
      return [=, &of_job](int i, uint2 b) {
#pragma unroll
        for (int job = 0; job < most_bases; ++job) {
          if (job >= count) break;
          auto *to = reinterpret_cast<uint2 *>(reinterpret_cast<std::uint8_t *>(of_job[job]) + offset);
          to[i * warp_lanes + (lane ^ job * run_columns * 4)] = b;
        }
      };
    };
    const auto turned = store(basis != nullptr ? sets->turned : sets->facing);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) turned(step, queries.turned(step));
    float2 units = {1, 1};
    if (basis != nullptr) units = queries.transform_to_basis(basis, store(sets->facing));
    if (projection != nullptr) queries.transform_to_modes(projection, mode_tiles, store(sets->modes));
    if (lane >= 4) return;
    for (int job = 0; job < count; ++job) {  // lanes that hold C's columns, two each
      Set &set = sets[jobs[job].set];
      const int pair = lane ^ job * run_columns / 2;
      reinterpret_cast<float2 *>(set.basis_units)[pair] = units;
      reinterpret_cast<float2 *>(set.units)[pair] = {queries.unit(0), queries.unit(1)};
    }
  }
};

/// Some blocks a head, so that each fetches one head's matrices: among them, the pages of all column
/// tiles of the batch are dealt out in equal runs. A block gathers the first pages of tiles in its run,
/// a thread a page, and deals them to its warps.
template <int HeadDim, class S>
__global__ void __launch_bounds__(set_threads, 2) make_query_sets(const AttendCall<S> call) {
  using Matrices = SetMatrices<HeadDim>;
  extern __shared__ __align__(128) std::uint8_t memory[];
  __shared__ SetJob jobs[set_threads];
  __shared__ int counts[set_warps], stop, most_columns;
  auto *matrices = reinterpret_cast<uint4 *>(memory);
  auto *storages = reinterpret_cast<QueryStorage<HeadDim> *>(memory + Matrices::bytes);
  auto *starts = reinterpret_cast<EntryStart *>(storages + set_warps);
  allow_next_launch();
  find_starts(call, 1, starts);
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index(), heads = call.kv_heads;
  const int head = static_cast<int>(blockIdx.x) % heads;
  const std::int64_t all = starts[call.entries].set / heads, part = blockIdx.x / heads,
                     parts = gridDim.x / heads;
  const int end = static_cast<int>(all * (part + 1) / parts);
  const HeadTables *fetched = nullptr;
  for (int first = static_cast<int>(all * part / parts), next; first < end; first = next) {
    const int index = first + thread;
    const auto entry_of = [&](int page) {
      return find_entry(starts, call.entries, page * heads, &EntryStart::set);
    };
    const auto tables_of = [&](int entry) {
      return &call.codings[call.batch[entry].state->coding].heads[head];
    };
    const HeadTables *tables = tables_of(entry_of(first));
    const uint4 *basis = tables->basis, *projection = tables->projection;
    if constexpr (Matrices::shared) {
      const auto fetch = [&](const uint4 *&matrix, uint4 *to, int count) {
        if (matrix == nullptr) return;
        if (tables != fetched) {
#pragma unroll 4
          for (int i = thread; i < count; i += set_threads) copy_async(to + i, matrix + i);
        }
        matrix = to;
      };
      fetch(basis, matrices, Matrices::basis);
      fetch(projection, matrices + Matrices::basis, tables->mode_tiles * (HeadDim / 16) * warp_lanes);
      commit_copies();
      fetched = tables;
    }
    if (thread == 0) {
      stop = min(first + set_threads, end);
      most_columns = 0;
    }
    __syncthreads();
    SetJob job{};
    bool begins = false;
    if (index < end) {
      const int e = entry_of(index);
      const BatchEntry &entry = call.batch[e];
      const int of_head = starts[e + 1].set / heads - starts[e].set / heads;
      const int local = index - starts[e].set / heads, pages = entry.state->page_count;
      const PageEntry &page = entry.state->pages[local % pages];
      job = {.base = page.base,
             .set = std::int64_t{starts[e].set} + std::int64_t{head} * of_head + local,
             .first_row = entry.first_row,
             .first = (call.first_tile + local / pages) * column_count,
             .columns = entry.tokens * (call.query_heads / heads)};
      begins = page.tile_page == 0;
      if (tables_of(e) != tables) atomicMin(&stop, index);  // these have other matrices
    }
    const int columns_of_warp = __reduce_max_sync(0xffffffffu, job.columns);
    if (lane_index() == 0) atomicMax(&most_columns, columns_of_warp);
    __syncthreads();
    next = stop;
    begins = begins && index < next;
    const unsigned before = __ballot_sync(0xffffffffu, begins);
    if (lane_index() == 0) counts[warp] = __popc(before);
    __syncthreads();
    int count = 0, own = 0;
    for (int i = 0; i < set_warps; ++i) {
      if (i == warp) own = count;
      count += counts[i];
    }
    if (begins) jobs[own + __popc(before & ((1u << lane_index()) - 1))] = job;
    wait_for_copies<0>();  // of the matrices
    __syncthreads();
    SetWarp<HeadDim, S> work{
        call,
        head,
        basis,
        projection,
        tables->mode_tiles,
        {storages[warp], &call.codings[call.batch[entry_of(first)].state->coding].tiles}};
    const int runs = most_columns > column_count / 2 ? 1 : most_columns > column_count / 4 ? 2 : 4;
#pragma unroll 1
    for (int i = runs * warp; i < count; i += runs * set_warps) {
      work.make(jobs + i, min(runs, count - i), runs);
    }
    __syncthreads();
  }
}

}  // namespace squat::cuda
