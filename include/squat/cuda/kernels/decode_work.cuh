#pragma once

// How a decode call's work is counted and dealt out.
//
// A segment is what some query rows of a sequence and KV head have to meet: its exact rows, in units of
// 64 tokens, then its pages, in units of 128. All segments stand in a line, head by head, each as long
// as its work takes. Neighbours with the same tables, those of a head and a coding, are a stretch.
// Blocks are dealt out to stretches by their length, so that a block has one as long as there are enough
// blocks; the groups of warps of a stretch's blocks are its workers, and share it evenly, if possible so
// that cuts fall between segments. What a worker does of a segment is a piece. Where all workers of a
// block have parts of one segment, theirs together are a piece.

#include <cstdint>

#include "squat/cuda/kernels/attend_call.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/kernels/warp.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// Warps that share queries, each with a quarter of the tokens; and their query rows.
inline constexpr int team_warps = 4, team_threads = team_warps * warp_lanes;
inline constexpr int team_row_bits = 2, team_rows = 1 << team_row_bits;

/// Tokens of a unit of pages, and of one of exact rows.
inline constexpr int unit_tokens = 128, exact_unit_tokens = 64;

/// How a launch uses a block.
struct DecodePlan {
  std::int32_t teams;  ///< of a block
  std::int32_t
      group_bits;          ///< 2^group_bits teams read the same pages, each for rows of its own: a group
  std::int32_t slots;      ///< units of pages that a group has room for
  std::int32_t row_bytes;  ///< room for the rows of the mean's modes
  std::int32_t exact_bits;  ///< a unit of exact rows costs as much as 2^exact_bits units of pages

  __host__ __device__ int teams_of_group() const { return 1 << group_bits; }
  __host__ __device__ int groups() const { return teams >> group_bits; }
  __host__ __device__ int rows() const { return team_rows << group_bits; }
  /// Groups that have so many rows, or units of exact rows that cost so much, rounded up.
  __host__ __device__ int tiles(int row_count) const {
    return (row_count + rows() - 1) >> (team_row_bits + group_bits);
  }
  __host__ __device__ int exact_units(int cost) const {
    return (cost + (1 << exact_bits) - 1) >> exact_bits;
  }
};

/// Where an entry begins in the line of one head, and its coding. Behind the last: all of them, and what
/// all segments cost alike, or 0.
struct EntryWork {
  std::int32_t cost;
  std::int32_t segment;
  std::int32_t stretch;
  std::int32_t stretch_first;  ///< entry
  std::int32_t coding;
};

/// An entry's segments.
struct DecodeShape {
  std::int32_t tiles;  ///< segments of a head
  std::int32_t exact_blocks;
  std::int32_t exact_cost;
  std::int32_t page_units;

  template <class S>
  __device__ DecodeShape(const AttendCall<S> &call, const DecodePlan &plan, const BatchEntry &entry,
                         int group) {
    const int rows = entry.tokens < call.many_tokens ? call.rows(entry) : 0;
    tiles = max(0, min(plan.tiles(rows) - call.first_tile, call.most_tiles));
    const LayerState &state = *entry.state;
    exact_blocks = (state.sinks + 15) / 16 + (state.tail + 15) / 16;
    const int exact_units = (exact_blocks * 16 + exact_unit_tokens - 1) / exact_unit_tokens;
    exact_cost = exact_units << plan.exact_bits;
    page_units = (state.page_count * group + unit_tokens - 1) / unit_tokens;
  }
  __device__ int cost() const { return exact_cost + page_units; }
};

/// Entries that a launch takes at most.
inline constexpr int most_entries = warp_lanes * warp_lanes;

/// The works of a launch's entries, in shared memory.
class EntryWorks {
 public:
  __device__ EntryWorks(int address, int entries) : address_(address), entries_(entries) {}

  __device__ EntryWork &operator[](int entry) const {
    return shared_at<EntryWork>(address_ + entry * static_cast<int>(sizeof(EntryWork)));
  }
  __device__ int entries() const { return entries_; }
  __device__ const EntryWork &all() const { return (*this)[entries_]; }

  /// The last entry whose `member`, which rises from one to the next, is at most `value`, as that of the
  /// first is. By a warp.
  __device__ int last_at_most(int value, std::int32_t EntryWork::*member) const {
    const int lane = lane_index();
    const auto last = [&](int from, int step) {
      const int entry = from + lane * step;
      const bool is = entry < entries_ && (*this)[entry].*member <= value;
      return from + (__popc(__ballot_sync(0xffffffffu, is)) - 1) * step;
    };
    return last(entries_ > warp_lanes ? last(0, warp_lanes) : 0, 1);
  }

 private:
  std::int32_t address_, entries_;
};

/// Fills works, [entries + 1], by all threads of a block. Its first warp has them then, the others
/// behind a barrier.
template <class S>
__device__ inline void find_works(const AttendCall<S> &call, const DecodePlan &plan, int group,
                                  const EntryWorks &works) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < call.entries; i += threads) {
    const BatchEntry entry = call.batch[i];
    const DecodeShape shape(call, plan, entry, group);
    works[i + 1].cost = shape.tiles * shape.cost();
    works[i + 1].segment = shape.tiles;
    works[i].coding = entry.state->coding;
  }
  if (thread == 0) works[0].cost = works[0].segment = 0;
  __syncthreads();
  if (thread < warp_lanes) {
    EntryWork carry{.cost = 0, .segment = 0, .stretch = -1, .stretch_first = 0, .coding = -1};
    int least = 0x7fffffff, most = 0;  // costs of segments
    for (int first = 0; first < call.entries; first += warp_lanes) {
      const int i = first + thread;
      const bool is = i < call.entries;
      const std::int32_t coding = is ? works[i].coding : -1;
      const std::int32_t before = __shfl_up_sync(0xffffffffu, coding, 1);
      const bool begins = is && coding != (thread == 0 ? carry.coding : before);
      const int cost = sum_of_lanes_before(is ? works[i + 1].cost : 0) + carry.cost;
      const int segment = sum_of_lanes_before(is ? works[i + 1].segment : 0) + carry.segment;
      if (is && works[i + 1].segment > 0) {
        const int own = works[i + 1].cost / works[i + 1].segment;
        least = min(least, own), most = max(most, own);
      }
      const unsigned begun = __ballot_sync(0xffffffffu, begins) & (2u << thread) - 1;
      const int stretch = carry.stretch + __popc(begun);
      const int stretch_first = begun != 0 ? first + 31 - __clz(begun) : carry.stretch_first;
      __syncwarp();
      if (is) {
        works[i + 1].cost = cost;
        works[i + 1].segment = segment;
        works[i].stretch = stretch;
        works[i].stretch_first = stretch_first;
      }
      const auto last = [](std::int32_t x) { return __shfl_sync(0xffffffffu, x, warp_lanes - 1); };
      carry = {last(cost), last(segment), last(stretch), last(stretch_first), last(coding)};
      __syncwarp();
    }
    least = __reduce_min_sync(0xffffffffu, least);
    most = __reduce_max_sync(0xffffffffu, most);
    if (thread == 0) {  // behind the last
      works[call.entries].coding = least == most ? most : 0;
      works[call.entries].stretch = carry.stretch + 1;
      works[call.entries].stretch_first = call.entries;
    }
    __syncwarp();
  }
}

/// a / b of numbers that are not negative.
__device__ inline int quotient(int a, int b) {
  return static_cast<int>(static_cast<unsigned>(a) / static_cast<unsigned>(b));
}

/// Part of the line.
struct Run {
  std::int32_t begin, end;

  __device__ bool empty() const { return begin >= end; }
  __device__ Run and_also(Run other) const { return {max(begin, other.begin), min(end, other.end)}; }
  /// The length of one of `count` equal parts; the last may be shorter, or empty.
  __device__ int each_of(int count) const { return quotient(max(end - begin, 0) + count - 1, count); }
  __device__ Run part(int index, int count) const {
    const int each = each_of(count);
    return Run{begin + index * each, begin + (index + 1) * each}.and_also(*this);
  }
};

/// Segments that have the same tables.
struct Stretch {
  Run run;
  std::int32_t first_block, blocks;
  std::int32_t segments;
  std::int32_t head, coding;
  std::int32_t name;  ///< rises along the line
};

/// What a block or one of its groups has to do of a stretch.
struct WorkerRun {
  Run own;    ///< of the group
  Run piece;  ///< of the block, where that is the piece; else the same
};

/// The line of all segments of a call.
class WorkLine {
 public:
  template <class S>
  __device__ WorkLine(const AttendCall<S> &call, const DecodePlan &plan, const EntryWorks &works,
                      int blocks)
      : works_(works),
        groups_(plan.groups()),
        blocks_(blocks),
        of_head_(works.all().cost),
        all_(of_head_ * call.kv_heads),
        segment_cost_(works.all().coding) {}

  /// The stretch of a block that comes behind `at` in the line, or one of no blocks. at: 0 at first. By
  /// a warp.
  __device__ Stretch next_stretch(int block, int at) const {
    at = max(at, product_over(block, all_, blocks_, 0));
    const int end = product_over(block + 1, all_, blocks_, blocks_ - 1);
#pragma unroll 1
    while (at < end) {
      const Stretch found = stretch(at);
      if (block >= found.first_block && block < found.first_block + found.blocks) return found;
      at = found.run.end;
    }
    return {};
  }

  /// The entry that stands at `at`, of a head. By a warp.
  __device__ int entry(int head, int at) const {
    return works_.last_at_most(at - head * of_head_, &EntryWork::cost);
  }
  __device__ int start(int head, int entry) const { return head * of_head_ + works_[entry].cost; }
  __device__ int segment(int head, int entry) const {
    return head * works_.all().segment + works_[entry].segment;
  }

  /// What group `group` of the stretch's block number `block` has to do.
  __device__ WorkerRun of_worker(const Stretch &stretch, int block, int group) const {
    const Share share(*this, stretch);
    if (share.blocks_of_segment > 0) {
      const int segment = quotient(block, share.blocks_of_segment);
      const int begin = stretch.run.begin + segment * segment_cost_;
      const Run all = Run{begin, begin + segment_cost_}.and_also(stretch.run);
      const Run piece = all.part(block - segment * share.blocks_of_segment, share.blocks_of_segment);
      return {piece.part(group, groups_), piece};
    }
    const int worker = block * groups_ + group;
    Run own{0, 0};
    if (worker < share.workers) {
      own = stretch.run.part(worker, share.workers);
      if (share.workers_of_segment > 0) {
        const int segment = quotient(worker, share.workers_of_segment);
        const int begin = stretch.run.begin + segment * segment_cost_;
        own = Run{begin, begin + segment_cost_}.part(worker - segment * share.workers_of_segment,
                                                     share.workers_of_segment);
      } else if (share.segments_of_worker > 0) {
        const int each = share.segments_of_worker * segment_cost_;
        const int begin = stretch.run.begin + worker * each;
        own = Run{begin, begin + each}.and_also(stretch.run);
      }
    }
    return {own, own};
  }

  /// Who left pieces of a segment: workers, `step` from one to the next.
  struct Workers {
    std::int32_t first, count, step;
  };
  __device__ Workers workers_of(const Stretch &stretch, Run segment) const {
    const Share share(*this, stretch);
    const int begin = segment.begin - stretch.run.begin, end = segment.end - stretch.run.begin;
    const int parts = max(share.blocks_of_segment, share.workers_of_segment);
    if (parts > 0) {
      const int step = share.blocks_of_segment > 0 ? groups_ : 1, each = segment.each_of(parts);
      return {quotient(begin, segment_cost_) * parts * step, quotient(segment_cost_ - 1, each) + 1,
              step};
    }
    const int each = share.segments_of_worker > 0 ? share.segments_of_worker * segment_cost_
                                                  : stretch.run.each_of(share.workers);
    const int first = quotient(begin, each);
    return {first, quotient(end - 1, each) + 1 - first, 1};
  }
  /// Whether the groups of a block share pieces.
  __device__ bool shares_pieces(const Stretch &stretch) const {
    return Share(*this, stretch).blocks_of_segment > 0;
  }

  /// The name of a piece, below most_pieces(): segments, stretches and blocks only rise along the line,
  /// so that no two pieces have the same sum. Those of a segment follow each other as their workers do.
  __device__ int piece(int segment, const Stretch &stretch, int worker) const {
    return segment + (stretch.name + stretch.first_block) * groups_ + worker;
  }

 private:
  /// (a b + more) / c; in 32 bits where they hold it.
  __device__ static int product_over(int a, int b, int c, int more) {
    const long long product = static_cast<long long>(a) * b + more;
    if (product <= 0xffffffffll) {
      return static_cast<int>(static_cast<unsigned>(product) / static_cast<unsigned>(c));
    }
    return static_cast<int>(product / c);
  }

  /// The stretch that stands at `at`.
  __device__ Stretch stretch(int at) const {
    const int head = quotient(at, of_head_), entry = this->entry(head, at);
    const int first = works_[entry].stretch_first;
    const int last = works_.last_at_most(works_[entry].stretch, &EntryWork::stretch) + 1;
    const Run run{start(head, first), start(head, last)};
    const int first_block = product_over(run.begin, blocks_, all_, 0);
    const int end_block = product_over(run.end, blocks_, all_, 0);
    return {.run = run,
            .first_block = first_block,
            .blocks = max(1, end_block - first_block),
            .segments = works_[last].segment - works_[first].segment,
            .head = head,
            .coding = works_[entry].coding,
            .name = head * works_.all().stretch + works_[entry].stretch};
  }

  /// How a stretch is shared: where all segments cost alike, whole numbers of blocks a segment, or of
  /// workers a segment, or of segments a worker, unless that leaves more than a sixteenth of them out.
  struct Share {
    std::int32_t workers, blocks_of_segment = 0, workers_of_segment = 0, segments_of_worker = 0;

    __device__ Share(const WorkLine &line, const Stretch &stretch)
        : workers(stretch.blocks * line.groups_) {
      if (line.segment_cost_ == 0) return;
      const int blocks = quotient(stretch.blocks, stretch.segments);
      if (16 * blocks * stretch.segments >= 15 * stretch.blocks && blocks <= line.segment_cost_) {
        blocks_of_segment = blocks;
        return;
      }
      const int each = quotient(workers, stretch.segments);  // workers of a segment
      const int rounds = quotient(stretch.segments + workers - 1, workers);
      const int even =
          each > 0 ? each * stretch.segments : quotient(stretch.segments + rounds - 1, rounds);
      if (16 * even < 15 * workers || each > line.segment_cost_) return;
      workers = even;
      (each > 0 ? workers_of_segment : segments_of_worker) = each > 0 ? each : rounds;
    }
  };

  EntryWorks works_;
  int groups_, blocks_;
  int of_head_, all_, segment_cost_;
};

/// What a group does of a segment.
struct DecodePiece {
  std::int32_t entry, tile, segment;     ///< segment: of the launch
  std::int32_t exact_first, exact_last;  ///< blocks of 16 tokens
  std::int32_t page_first, page_last;
  Run all, own;  ///< of the segment, and of the piece, in the line

  __device__ bool has_exact_rows() const { return exact_first < exact_last; }
  __device__ bool is_whole() const { return own.begin == all.begin && own.end == all.end; }
};

/// The piece at the beginning of what a group has left. By a warp.
template <class S>
__device__ inline DecodePiece piece_at(const AttendCall<S> &call, const DecodePlan &plan,
                                       const WorkLine &line, int group_tokens, int head,
                                       const WorkerRun &left) {
  const int entry = line.entry(head, left.piece.begin);
  const BatchEntry &of = call.batch[entry];
  const DecodeShape shape(call, plan, of, group_tokens);
  const int start = line.start(head, entry), tile = quotient(left.piece.begin - start, shape.cost());
  DecodePiece piece{.entry = entry, .tile = tile, .segment = line.segment(head, entry) + tile};
  piece.all.begin = start + tile * shape.cost();
  piece.all.end = piece.all.begin + shape.cost();
  piece.own = piece.all.and_also(left.piece);
  // A unit of exact rows belongs to the piece that it begins in.
  const Run own = piece.all.and_also(left.own);
  const int begin = own.begin - piece.all.begin, end = max(begin, own.end - piece.all.begin);
  const auto block = [&](int cost) {
    constexpr int unit_blocks = exact_unit_tokens / 16;
    return min(plan.exact_units(min(cost, shape.exact_cost)) * unit_blocks, shape.exact_blocks);
  };
  piece.exact_first = block(begin), piece.exact_last = block(end);
  const int pages = of.state->page_count;
  const auto page = [&](int cost) {
    return min(max(cost - shape.exact_cost, 0) * unit_tokens / group_tokens, pages);
  };
  piece.page_first = page(begin), piece.page_last = page(end);
  return piece;
}

/// Pieces of a launch at most.
inline std::int64_t most_pieces(std::int64_t segments, std::int64_t entries, int kv_heads, int blocks,
                                int groups) {
  return segments + (entries * kv_heads + blocks) * groups;
}

}  // namespace squat::cuda
