// Every page that is due is visited once for every head, however entries are shared out to blocks.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "device_array.hpp"
#include "squat/cuda/kernels/pack_call.cuh"

namespace squat::test {
namespace {

constexpr int group = 32, residual = 16, heads = 3, table = 8, most_pages = 4;

/// Counts visits: bytes of an entry's page are counts, one a head.
__global__ void visit_due(cuda::PackCall call) {
  cuda::for_each_due_page<group>(call, [&](const cuda::LayerState &, std::uint8_t *bytes) {
    if (threadIdx.x == 0) ++bytes[blockIdx.y];
  });
}

struct Entry {
  int tail, page_count, ready;  ///< pages that there is memory for
  bool learnt;

  int due() const {
    const int full = tail < residual + group ? 0 : (tail - residual) / group;
    return learnt ? std::min({full, ready, most_pages, table - page_count}) : 0;
  }
};

void expect_visits(int count, unsigned shares) {
  std::mt19937 random(static_cast<unsigned>(count));
  const auto draw = [&](int below) { return static_cast<int>(random() % static_cast<unsigned>(below)); };
  std::vector<Entry> entries;
  for (int i = 0; i < count; ++i) entries.push_back({draw(200), draw(table), draw(table), draw(5) > 0});
  DeviceArray<std::uint8_t> counts(
      std::vector<std::uint8_t>(static_cast<std::size_t>(count * table * heads)));
  std::vector<cuda::PageEntry> pages(static_cast<std::size_t>(count * table));
  const auto bytes = [&](int entry, int page) { return counts.data() + (entry * table + page) * heads; };
  for (int i = 0; i < count; ++i) {
    const Entry &entry = entries[static_cast<std::size_t>(i)];
    for (int page = 0; page < std::min(entry.page_count + entry.ready, table); ++page)
      pages[static_cast<std::size_t>(i * table + page)].data = bytes(i, page);
  }
  DeviceArray<cuda::PageEntry> page_array(pages);
  std::vector<cuda::LayerState> states(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    const Entry &entry = entries[static_cast<std::size_t>(i)];
    cuda::LayerState &state = states[static_cast<std::size_t>(i)];
    state.pages = page_array.data() + i * table;
    state.page_count = entry.page_count;
    state.page_capacity = table;
    state.tail = entry.tail;
    state.coding = entry.learnt ? 1 : 0;
  }
  DeviceArray<cuda::LayerState> state_array(states);
  std::vector<cuda::BatchEntry> batch;
  for (int i = 0; i < count; ++i) batch.push_back({state_array.data() + i, 0, 1, 0});
  DeviceArray<cuda::BatchEntry> batch_array(batch);
  std::vector<cuda::CodingTables> codings(2);
  codings[1].learnt = 1;
  DeviceArray<cuda::CodingTables> coding_array(codings);
  const cuda::PackCall call{.batch = batch_array.data(),
                            .entries = count,
                            .most_pages = most_pages,
                            .kv_heads = heads,
                            .residual = residual,
                            .codings = coding_array.data()};
  dim3 grid = cuda::pack_grid(call);
  EXPECT_EQ(grid.x * grid.y, most_pages * heads);
  EXPECT_LE(grid.z, count);
  if (shares > 0) grid.z = shares;
  visit_due<<<grid, 64>>>(call);
  finish();
  const std::vector<std::uint8_t> found = counts.read();
  int due = 0;
  for (int i = 0; i < count; ++i) {
    const Entry &entry = entries[static_cast<std::size_t>(i)];
    for (int page = 0; page < table; ++page) {
      const bool is = page >= entry.page_count && page < entry.page_count + entry.due();
      due += is ? 1 : 0;
      for (int head = 0; head < heads; ++head) {
        EXPECT_EQ(found[static_cast<std::size_t>((i * table + page) * heads + head)], is ? 1 : 0)
            << "entry " << i << " of " << count << ", page " << page << ", head " << head;
      }
    }
  }
  EXPECT_TRUE(due > 0 || count < 4);
}

TEST(PackCall, VisitsEveryDuePageOnce) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  for (const int count : {1, 2, 31, 33, 200}) expect_visits(count, 0);
}

TEST(PackCall, SharesMayHaveManyEntries) {
  if (!has_device()) GTEST_SKIP() << "no CUDA device";
  for (const unsigned shares : {1u, 3u, 32u}) expect_visits(300, shares);
}

}  // namespace
}  // namespace squat::test
