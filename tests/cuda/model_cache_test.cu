// A model's cache whose groups are on the device.

#include <gtest/gtest.h>

#include <vector>

#include "caches.cuh"
#include "squat/model/make_group.hpp"
#include "squat/model/model_cache.hpp"

namespace squat::test {
namespace {

/// Two layers of one head_dim, of widths that the other tests have kernels for.
ModelOptions two_groups() {
  LayerGroup packed{.layers = {1}, .key_bits = 2, .value_bits = 2}, exact{.layers = {0}};
  packed.options = {.query_heads = 4, .kv_heads = 2, .head_dim = 64, .residual = 16, .page_tokens = 32};
  packed.options.statistics_tokens = 60;
  exact.options = packed.options;
  exact.key_bits = exact.value_bits = 16;
  return {.layers = 2, .groups = {packed, exact}};
}

using CudaModelCache = OnDevice;

TEST_F(CudaModelCache, IsACacheForEachGroup) {
  const ModelOptions options = two_groups();
  ModelCache cache(options,
                   make_group<DeviceBackend<64, 32>, half, squat::Widths<2, 2>, squat::Widths<16, 16>>);
  Options alone = options.groups[0].options;
  alone.layers = 1;
  DeviceCache<64, 32, 2, 2> packed(alone);
  DeviceCache<64, 32, 16, 16> exact(alone);
  DeviceInputs in(alone, 200, 5);
  const SequenceId all = cache.add_sequence(), one = packed.add_sequence(), other = exact.add_sequence();
  Index first = 0;
  for (const Index count : {150, 1, 1, 48}) {
    const auto q = in.q.view(first, count), k = in.k.view(first, count), v = in.v.view(first, count),
               out = in.out.view(first, count);
    const auto attended = [&](auto &&attend) {
      attend();
      return in.out.read().elements;
    };
    const auto expected = attended([&] { packed.attend(one, 0, q, k, v, out); });
    EXPECT_EQ(attended([&] { cache.attend(all, 1, q, k, v, out); }), expected);
    const auto expected_exact = attended([&] { exact.attend(other, 0, q, k, v, out); });
    EXPECT_EQ(attended([&] { cache.attend(all, 0, q, k, v, out); }), expected_exact);
    first += count;
  }
  const std::vector<Index> parents{-1, 0, 0, 1};
  const AttentionTensors<float> drafted{
      .q = in.q.view(0, 4), .k = in.k.view(0, 4), .v = in.v.view(0, 4), .out = in.out.view(0, 4)};
  const auto found = [&](auto &of, SequenceId sequence, int layer) {
    of.draft(std::vector{SequenceTokens{sequence, 4}}, layer, drafted, parents);
    return in.out.read().elements;
  };
  EXPECT_EQ(found(cache, all, 1), found(packed, one, 0));
  EXPECT_EQ(found(cache, all, 0), found(exact, other, 0));
  const std::vector step{SequenceTokens{all, 1}};
  EXPECT_GT(cache.steps_to_replay(step), 0);
  EXPECT_THROW(cache.advance(step, 33), Error) << "more than a page";
  EXPECT_EQ(cache.length(all), 200);
  cache.check();
  const SequenceId child = cache.fork(all, 120);
  cache.reorder(std::vector{all}, std::vector{child});
  EXPECT_EQ(cache.length(all), 120);
  std::vector<std::byte> bytes;
  cache.save(all, bytes);
  EXPECT_EQ(cache.length(cache.load(bytes)), 120);
}

}  // namespace
}  // namespace squat::test
