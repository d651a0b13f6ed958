#pragma once

// The copies of a team's pages to shared memory: which pages come next, when scales and zeros of a batch
// and when the codes of a unit are asked for.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "squat/cuda/kernels/barrier_copy.cuh"
#include "squat/cuda/kernels/decode_team.cuh"
#include "squat/cuda/kernels/face_pages.cuh"
#include "squat/cuda/kernels/shared_memory.cuh"
#include "squat/cuda/page/page_layout.cuh"
#include "squat/cuda/state/device_state.cuh"

namespace squat::cuda {

/// A team that asks for pages. Of a group, the first team asks first, then whichever warp is the last to
/// be done with a slot.
template <class Layout, ValueCoding Values, class S>
class PageCopies : public DecodeTeam<Layout, Values, S> {
 public:
  using Team = DecodeTeam<Layout, Values, S>;
  using Team::Team;
  using typename Team::Memory, Team::task, Team::copies, Team::team_in_group, Team::thread_of_team;
  static constexpr int Group = Layout::Group, pages_of_unit = Memory::pages_of_unit;

  /// The page that is the i-th to be met; a ring of those that are looked up.
  __device__ typename Memory::Page &page_at(int i) const {
    using Page = typename Memory::Page;
    constexpr unsigned ring = Memory::page_ring;
    return shared_at<Page>(memory_ + Memory::pages +
                           static_cast<int>(static_cast<unsigned>(i) % ring * sizeof(Page)));
  }

  /// When page `i` of the piece is met. Of four pages of two tiles the rows of the one are met with
  /// those of the other, for which the modes of the mean are the same: 0, 2, 1, 3.
  __device__ int order(int i, int first_batch) const {
    const int in_batch = i - first_batch & (batch_pages - 1), first = i - in_batch;
    if (i < first_batch || first + batch_pages > task().page_count) return i;
    return first + (in_batch >> 1 | (in_batch & 1) << 1);
  }

  /// Looks up the next pages of the piece behind `begin`, whole batches, by the team's threads. Returns
  /// how many are known then.
  __device__ int stage_pages(int begin) const {
    const DecodeTask &task = this->task();
    const PageEntry *entries = task.pages;
    // So many that the next batch begins a tile where tiles have two or four pages.
    const int first_batch = min(
        batch_pages - (pages_of_unit == 1 ? entries[0].tile_page % batch_pages : 0), task.page_count);
    const int count = begin == 0 ? first_batch + Memory::page_ring - batch_pages : Memory::page_ring / 2;
    const int end = min(begin + count, task.page_count), i = begin + thread_of_team();
    if (thread_of_team() == 0) this->task().first_batch = first_batch;
    const int at = order(i, first_batch);
    if (i < end) {
      const PageEntry entry = entries[i];
      const int first = entry.first, last = first + entry.tokens;
      DecodePage &page = page_at(at);
      page = {.data = part_of_head(entry.data),
              .base = entry.base,
              .before = entry.before - first,
              .first = static_cast<std::int16_t>(first),
              .last = static_cast<std::int16_t>(last),
              .masked = first > 0 || last < Group || entry.before + entry.tokens > task.limits[0] ||
                        entry.before < task.all_see,
              .batch = 0,
              .tile = i - entry.tile_page,
              .mode_row = entry.row / 16 * 512,
              .named_base = entry.base};
      if constexpr (Memory::shares_bits) place_codes(page_at(at), page.data - entry.data);
    }
    __syncwarp();  // batches do not cross warps
    if (i < end && at == i && (i == 0 || (i >= first_batch && (i - first_batch) % batch_pages == 0))) {
      name_bases(i, min(i == 0 ? first_batch : batch_pages, task.page_count - i));
    }
    return end;
  }
  /// The head's part of a page, or where heads share bits its scales and zeros.
  __device__ const std::uint8_t *part_of_head(const std::uint8_t *page) const {
    const int head = this->stretch().head;
    if constexpr (Memory::shares_bits) return page + Layout::parameters(head, call_.kv_heads);
    return page + static_cast<std::size_t>(head) * Layout::head_bytes(Values);
  }
  /// Notes where the codes of a page are: its first scale says in which space. begin: of `data` in it.
  __device__ void place_codes(SharedDecodePage &page, std::ptrdiff_t begin) const {
    const auto scale = *reinterpret_cast<const std::uint16_t *>(page.data + Layout::key_scales);
    const HeadTables &tables = call_.codings[this->stretch().coding].heads[this->stretch().head];
    const SharedPlace place = tables.places[scale >> 15];
    page.codes = place.codes - static_cast<std::int32_t>(begin);
    page.key_bytes = place.key_bytes;
    page.value_bits = place.value_bits;
  }
  /// Where part `part` of a slot begins in the codes of a page; behind the last, where they end.
  __device__ static int part_begin(const typename Memory::Page &page, int part) {
    if constexpr (Memory::shares_bits) {
      if (part == 0) return 0;
      const int end = page.key_bytes + Layout::value_bytes(page.value_bits) + Layout::value_scale_bytes;
      return part == Memory::slot_parts ? end : page.key_bytes;
    }
    return Memory::part_offset(part);
  }

  /// Of the batch that begins at page `first`, by one thread.
  __device__ void name_bases(int first, int count) const {
    int tiles[batch_pages], rows[batch_pages];
#pragma unroll
    for (int i = 0; i < batch_pages; ++i) {
      const DecodePage &page = page_at(first + min(i, count - 1));
      tiles[i] = page.tile, rows[i] = page.mode_row;
    }
    PageBatch batch;
    int found = 0;
#pragma unroll
    for (int i = 0; i < batch_pages; ++i) {
      int name = found;
#pragma unroll
      for (int j = 0; j < i; ++j) {
        if (tiles[j] == tiles[i]) name = batch.name(j);
      }
      if (name == found && i < count) page_at(first + found++).named_base = page_at(first + i).base;
      // Only where a warp meets one page after the other.
      const bool follows = pages_of_unit == 1 && i % 2 != 0;
      batch.add(i, name, follows && rows[i] == rows[i - 1] && (batch.name(i - 1) ^ name) == 1);
    }
    page_at(first).batch = batch.known();
  }
  /// Pages of the first batch.
  __device__ int first_batch() const { return task().first_batch; }

  /// Asks for the first pages of a piece.
  __device__ void begin_copies() const {
    if (warp_ != 0) return;
    fill_parts(0, first_batch());  // needed first
    if (team_in_group() > 0) return;
    int slot = copies().slot;
    for (int i = 0; i < plan_.slots && i * pages_of_unit < task().page_count; ++i) {
      for (int part = 0; part < Memory::slot_parts; ++part) fill_slot(i, slot, part);
      slot = next_slot(slot);
    }
  }

  /// Copies the scales and zeros of the pages of a batch; by a warp.
  __device__ void fill_parts(int first, int count) const {
    const BarrierCopy copy(&shared_at<CopyBarrier>(memory_ + Memory::barrier),
                           count * Memory::part_bytes);
    copy.add_each(count, Memory::part_bytes, [&](int i) -> CopyPlace {
      return {&shared_at<std::uint8_t>(memory_ + Memory::parts + i * Memory::part_bytes),
              page_at(first + i).data};
    });
    copy.end();
  }

  /// Copies a part of a unit's codes and values' scales; by a warp.
  __device__ void fill_slot(int unit, int slot, int part) const {
    const int first = unit * pages_of_unit, count = min(pages_of_unit, task().page_count - first);
    const typename Memory::Page &page = page_at(first);
    const int begin = part_begin(page, part), bytes = part_begin(page, part + 1) - begin;
    const BarrierCopy copy(&shared_at<CopyBarrier>(Memory::slot_barrier(slot, part)), count * bytes);
    copy.add_each(count, bytes, [&](int i) -> CopyPlace {
      std::uint8_t *to = &shared_at<std::uint8_t>(slot + i * Memory::page_bytes + begin);
      if constexpr (Memory::shares_bits) return {to, page.data + page.codes + begin};
      return {to, page_at(first + i).data + Layout::key_codes + begin};
    });
    copy.end();
  }
  __device__ int next_slot(int slot) const {
    slot += Memory::slot_bytes;
    return slot == slots_ + plan_.slots * Memory::slot_bytes ? slots_ : slot;
  }

  /// Says that the warp is done with a part of a slot; the last asks for that of the unit that comes
  /// next.
  __device__ void leave_slot(int unit, int slot, int part) const {
    __syncwarp();
    const int next = unit + plan_.slots;
    if (next * pages_of_unit >= task().page_count) return;
    bool last = false;
    if (lane_index() == 0) {
      const auto most = static_cast<unsigned>(plan_.teams_of_group() * team_warps - 1);
      last = atomicInc(&shared_at<unsigned>(Memory::slot_count(slot, part)), most) == most;
    }
    if (!bulk_copies || pages_of_unit > 1) last = __shfl_sync(0xffffffffu, last, 0);
    if (last) fill_slot(next, slot, part);
  }

 protected:
  using Team::block_, Team::memory_, Team::slots_, Team::warp_, Team::plan_, Team::call_;
};

}  // namespace squat::cuda
