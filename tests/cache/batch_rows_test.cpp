// The rows of a call's tensors that belong to its sequences, one behind the other or with padding
// between them.

#include "squat/cache/batch_rows.hpp"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace squat::test::batch_rows_test {
namespace {

using Batch = std::vector<SequenceTokens>;
using Pairs = std::vector<std::pair<Index, Index>>;

SequenceTokens share(Index tokens, Index first_row = SequenceTokens::behind_the_last) {
  return {.sequence = {}, .tokens = tokens, .first_row = first_row};
}

/// First row and count of each.
Pairs entries(const Batch &batch) {
  Pairs found;
  detail::for_each_entry(batch, [&](const SequenceTokens &entry, Index row) {
    found.push_back({row, entry.tokens});
  });
  return found;
}

Pairs runs(const Batch &batch) {
  Pairs found;
  detail::for_each_run(batch, [&](Index first, Index count) { found.push_back({first, count}); });
  return found;
}

TEST(BatchRows, FollowEachOther) {
  const Batch batch{share(3), share(0), share(2)};
  detail::check_rows(batch, 5);
  EXPECT_EQ(entries(batch), (Pairs{{0, 3}, {3, 2}}));
  EXPECT_EQ(runs(batch), (Pairs{{0, 5}}));
}

TEST(BatchRows, BeginWhereAnEntrySays) {
  const Batch batch{share(2, 1), share(1), share(4, 6), share(0, 10), share(1, 11)};
  detail::check_rows(batch, 20);
  EXPECT_EQ(entries(batch), (Pairs{{1, 2}, {3, 1}, {6, 4}, {11, 1}}));
  EXPECT_EQ(runs(batch), (Pairs{{1, 3}, {6, 4}, {11, 1}}));
}

TEST(BatchRows, AreNoneOfAnEmptyBatch) {
  detail::check_rows(Batch{}, 0);
  EXPECT_EQ(runs(Batch{}), Pairs{});
  EXPECT_EQ(runs(Batch{share(0), share(0)}), Pairs{});
}

TEST(BatchRows, AreAllOfThemUnlessAnEntrySaysWhere) {
  EXPECT_THROW(detail::check_rows(Batch{share(3)}, 4), Error);
  EXPECT_THROW(detail::check_rows(Batch{share(3)}, 2), Error);
  EXPECT_THROW(detail::check_rows(Batch{share(-1)}, 0), Error);
  EXPECT_NO_THROW(detail::check_rows(Batch{share(3, 0)}, 4));
}

TEST(BatchRows, DoNotOverlapAndDoNotEndBehindTheTensors) {
  EXPECT_THROW(detail::check_rows(Batch{share(3, 0), share(1, 2)}, 9), Error);
  EXPECT_THROW(detail::check_rows(Batch{share(3, 0), share(1, 10)}, 9), Error);
  EXPECT_THROW(detail::check_rows(Batch{share(3, 0), share(2, 8)}, 9), Error);
}

}  // namespace
}  // namespace squat::test::batch_rows_test
