#pragma once

// How a MemoryReport comes about.

#include <cstddef>

#include "squat/cache/layer_codings.hpp"
#include "squat/cache/layer_pages.hpp"
#include "squat/cache/memory_report.hpp"
#include "squat/cache/options.hpp"
#include "squat/cache/sequence.hpp"
#include "squat/cache/sequence_table.hpp"
#include "squat/core/config.hpp"
#include "squat/core/instruction_set.hpp"

namespace squat::detail::inline SQUAT_API_NAMESPACE {

/// Counts on the host, page by page. options: those of the caller. workspace: bytes of it that are not
/// the backend's.
template <class Operations, class Stream>
MemoryReport count_memory(
    const Options &options, const Operations &operations,
    const LayerPages<typename Operations::Memory, typename Operations::Exact> &layer_pages,
    const LayerCodings<Operations, Stream> &codings,
    const SequenceTable<SequenceState<typename Operations::Exact>> &sequences, std::size_t workspace) {
  MemoryReport report;
  report.pages = layer_pages.bytes();
  report.pages_used = layer_pages.used_bytes();
  report.statistics = operations.statistics_bytes();
  report.bases = operations.bases_bytes();
  report.workspace = operations.workspace_bytes() + workspace;
  std::size_t held = 0, held_with_others = 0, held_bytes = 0;  // pages, once for each of who holds them
  sequences.for_each([&](const auto &sequence) {
    for (const auto &layer : sequence.layers) {
      report.exact += layer.exact.bytes();
      report.exact_tokens += layer.exact.sinks() + layer.exact.tail();
      report.packed_tokens += layer.paged_tokens();
      const HeldPages pages = layer_pages.held(layer);
      held += pages.all;
      held_with_others += pages.all - pages.alone;
      held_bytes += pages.all * layer_pages.page_bytes(layer);
    }
  });
  report.saved_by_sharing = held_bytes - report.pages_used;
  // But the first of who holds each.
  report.shared_pages = held_with_others - (held - layer_pages.used());
  const double elements =  // of a token and layer
      static_cast<double>(options.kv_heads) * (options.head_dim + options.value_dim);
  std::size_t page_bytes = 0;  // of a page of each layer
  for (int layer = 0; layer < options.layers; ++layer)
    page_bytes += operations.page_bytes(codings.own(layer));
  report.packed_bits_per_element =
      8.0 * static_cast<double>(page_bytes) / (elements * options.page_tokens * options.layers);
  const Index tokens = report.packed_tokens + report.exact_tokens;
  if (tokens > 0) {
    const auto bytes = static_cast<double>(held_bytes + report.exact + report.statistics + report.bases);
    report.total_bits_per_element = 8.0 * bytes / (elements * static_cast<double>(tokens));
  }
  return report;
}

}  // namespace squat::detail::inline SQUAT_API_NAMESPACE
