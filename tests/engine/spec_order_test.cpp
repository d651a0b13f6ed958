// Options of a SPEC mean the same in any order.

#include <gtest/gtest.h>

#include "cache_spec.hpp"

namespace engine::test::spec_order_test {
namespace {

TEST(CacheSpecs, KeepTheGroupTheyNameBesidePublished) {
  const Config config{.layers = 1, .query_heads = 2, .kv_heads = 1, .head_dim = 64};
  const auto group = [&](const char *spec) {
    return parse_cache_spec(spec).options_for(config).groups[0].options.page_tokens;
  };
  EXPECT_EQ(group("orthogonal:k2v2:published"), 32);
  EXPECT_EQ(group("orthogonal:k2v2:published:g64"), 64);
  EXPECT_EQ(group("orthogonal:k2v2:g64:published"), 64);
}

}  // namespace
}  // namespace engine::test::spec_order_test
