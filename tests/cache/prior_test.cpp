// Statistics of one cache teach another: they add up with its own, travel through a file, and a damaged
// file is refused.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>

#include "reference/expect_error.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "squat/coding/moments.hpp"

namespace squat::test::prior_test {
namespace {

Options small() {
  Options options{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32};
  options.sinks = 2;
  options.residual = 16;
  options.page_tokens = 32;
  options.statistics_tokens = 100;
  options.rotary = {rotary_table(1e3, 32)};
  options.tile_tokens = 64;
  return options;
}

template <class Cache>
SequenceId feed(Cache &cache, Inputs<> &in) {
  const SequenceId sequence = cache.add_sequence();
  for (int layer = 0; layer < 2; ++layer)
    cache.append(sequence, layer, in.q.view(), in.k.view(), in.v.view());
  return sequence;
}

std::string saved(const Prior &prior) {
  std::ostringstream out;
  prior.save(out);
  return out.str();
}

Prior loaded(const std::string &bytes) {
  std::istringstream in(bytes);
  return Prior::load(in);
}

TEST(Prior, OfOneTextAndThePromptTeachAsBothTextsWould) {
  Options options = small();
  Inputs<> first(options, 300, 1), second(options, 300, 2);
  options.keep_statistics = true;
  KVCache<float, 2> teacher(options);
  feed(teacher, first);
  const auto prior = std::make_shared<Prior>(teacher.statistics());
  EXPECT_EQ(prior->head(1, 1).keys(), 298) << "every token but the sinks";
  EXPECT_EQ(prior->head(1, 1).queries(), 300 * 2 * 3) << "two heads, three tiles";

  options.prior = prior;
  KVCache<float, 2> pupil(options);
  feed(pupil, second);
  Prior both = teacher.statistics();
  options.prior.reset();
  KVCache<float, 2> alone(options);
  feed(alone, second);
  both.merge(alone.statistics());
  EXPECT_EQ(pupil.statistics().head(0, 1).keys(), both.head(0, 1).keys());
  const Eigen::MatrixXd moment = query_moment(both.head(0, 1));
  EXPECT_LT((query_moment(pupil.statistics().head(0, 1)) - moment).norm(), 1e-6 * moment.norm());
}

TEST(Prior, LetsTheFirstPageBePackedAsSoonAsItIsFull) {
  Options options = small();
  options.keep_statistics = true;
  Inputs<> in(options, 60, 1), text(options, 200, 2);
  KVCache<float, 2> teacher(options);
  feed(teacher, text);
  KVCache<float, 2> without(options);
  feed(without, in);
  EXPECT_EQ(without.memory_report().packed_tokens, 0);
  options.prior = std::make_shared<Prior>(teacher.statistics());
  KVCache<float, 2> with(options);
  feed(with, in);
  EXPECT_EQ(with.memory_report().packed_tokens, 2 * 32);
}

TEST(Prior, IsTheSameBehindAFile) {
  Options options = small();
  options.keep_statistics = true;
  Inputs<> in(options, 150, 1);
  KVCache<half, 16> exact(options);  // a cache that packs nothing collects too
  feed(exact, in);
  const std::string bytes = saved(exact.statistics());
  EXPECT_EQ(saved(loaded(bytes)), bytes);
}

/// The end of a file: a checksum of all before.
void add_checksum(std::string &bytes) {
  std::uint64_t checksum = 14695981039346656037u;
  for (const char byte : bytes)
    checksum = (checksum ^ static_cast<unsigned char>(byte)) * 1099511628211u;
  bytes.append(reinterpret_cast<const char *>(&checksum), sizeof checksum);
}

std::string file_begin(Index version, const Prior &prior) {
  std::string bytes = "squatpri";
  for (Index number : {version, prior.layers(), prior.kv_heads(), prior.head_dim(), prior.rows()})
    bytes.append(reinterpret_cast<const char *>(&number), sizeof number);
  return bytes;
}

/// A file of version 1 is doubles alone: two counts, squares of moments, sums by row, their counts,
/// ranges.
std::string saved_as_version_1(const Prior &prior) {
  std::string bytes = file_begin(1, prior);
  const auto write = [&](double number) {
    bytes.append(reinterpret_cast<const char *>(&number), sizeof number);
  };
  const auto write_all = [&](auto numbers) {
    for (const auto number : numbers) write(static_cast<double>(number));
  };
  for (Index layer = 0; layer < prior.layers(); ++layer) {
    for (Index head = 0; head < prior.kv_heads(); ++head) {
      const QueryStatistics &statistics = prior.head(layer, head);
      const auto write_square = [&](auto triangle) {
        for (Index i = 0; i < prior.head_dim(); ++i) {
          for (Index j = 0; j < prior.head_dim(); ++j) {
            const Index at = triangle_index(std::max(i, j), std::min(i, j));
            write(static_cast<double>(triangle[static_cast<std::size_t>(at)]));
          }
        }
      };
      write_all(statistics.sums(&HeadSums::queries));
      write_all(statistics.sums(&HeadSums::groups));
      write_square(statistics.sums(&HeadSums::query_moment));
      write_square(statistics.sums(&HeadSums::key_moment));
      write_all(statistics.sums(&HeadSums::row_sums));
      write_all(statistics.sums(&HeadSums::row_counts));
      write_all(statistics.sums(&HeadSums::key_range));
    }
  }
  add_checksum(bytes);
  return bytes;
}

/// One of version 2 has the sums of today but those of attention.
std::string saved_as_version_2(const Prior &prior) {
  std::string bytes = file_begin(2, prior);
  for (Index layer = 0; layer < prior.layers(); ++layer) {
    for (Index head = 0; head < prior.kv_heads(); ++head) {
      const QueryStatistics &statistics = prior.head(layer, head);
      const auto write = [&](auto sums) {
        bytes.append(reinterpret_cast<const char *>(sums.data()), sums.size_bytes());
      };
      for (const auto sums : {&HeadSums::queries, &HeadSums::groups, &HeadSums::key_moment,
                              &HeadSums::key_sum, &HeadSums::row_counts, &HeadSums::key_range}) {
        write(statistics.sums(sums));
      }
      write(statistics.sums(&HeadSums::query_moment));
      write(statistics.sums(&HeadSums::row_sums));
    }
  }
  add_checksum(bytes);
  return bytes;
}

TEST(Prior, ReadsFilesOfItsFirstVersion) {
  Options options = small();
  options.keep_statistics = true;
  Inputs<> in(options, 150, 1);
  KVCache<float, 2> cache(options);
  feed(cache, in);
  const Prior written = cache.statistics(), read = loaded(saved_as_version_1(written));
  const TileFrame frame(rotary_table(1e3, 32), 64);
  for (Index head : {0, 1}) {
    const QueryStatistics &before = written.head(1, head), &after = read.head(1, head);
    EXPECT_EQ(after.queries(), before.queries());
    EXPECT_EQ(after.keys(), before.keys());
    EXPECT_EQ(query_moment(after), query_moment(before));
    const Eigen::MatrixXd covariance = key_covariance(before, &frame, {before, &frame});
    EXPECT_LT((key_covariance(after, &frame, {after, &frame}) - covariance).norm(),
              1e-6 * covariance.norm());
  }
}

TEST(Prior, ReadsFilesOfItsSecondVersion) {
  Options options = small();
  options.keep_statistics = true;
  Inputs<> in(options, 150, 1);
  KVCache<float, 2> cache(options);
  feed(cache, in);
  const Prior written = cache.statistics(), read = loaded(saved_as_version_2(written));
  for (Index head : {0, 1}) {
    const QueryStatistics &before = written.head(1, head), &after = read.head(1, head);
    ASSERT_TRUE(has_attention_weights(before));
    EXPECT_FALSE(has_attention_weights(after));
    EXPECT_EQ(after.queries(), before.queries());
    EXPECT_EQ(query_moment(after), query_moment(before));
    const TileFrame frame(rotary_table(1e3, 32), 64);
    EXPECT_EQ(key_covariance(after, &frame, {after, &frame}),
              key_covariance(before, &frame, {before, &frame}));
  }
}

TEST(Prior, RefusesWeightsBelowZero) {
  Options options = small();
  options.keep_statistics = true;
  KVCache<float, 2> cache(options);
  Prior prior = cache.statistics();
  EXPECT_NO_THROW(loaded(saved(prior)));
  prior.head(1, 0).sums(&HeadSums::value_weight)[0] = -1;
  EXPECT_THROW(loaded(saved(prior)), Error);
}

TEST(Prior, RefusesDamagedFiles) {
  Options options = small();
  options.keep_statistics = true;
  Inputs<> in(options, 150, 1);
  KVCache<float, 2> cache(options);
  feed(cache, in);
  const std::string bytes = saved(cache.statistics());
  EXPECT_THROW(loaded(""), Error);
  for (std::size_t size : {std::size_t{7}, std::size_t{20}, bytes.size() / 2, bytes.size() - 1}) {
    EXPECT_THROW(loaded(bytes.substr(0, size)), Error) << size;
  }
  for (std::size_t at = 0; at < bytes.size(); at += at < 64 ? 1 : 997) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x41);
    EXPECT_THROW(loaded(damaged), Error) << "byte " << at;
  }
}

TEST(Prior, OfAnotherShapeIsRefusedByName) {
  Options options = small();
  options.keep_statistics = true;
  KVCache<float, 2> cache(options);
  options.prior = std::make_shared<Prior>(cache.statistics());
  options.tile_tokens = 128;
  expect_error([&] { KVCache<float, 2> other(options); }, {"prior.rows"});
  Prior narrow(2, 2, 16, 64);
  EXPECT_THROW(narrow.merge(*options.prior), Error);
}

TEST(Prior, IsGoneOnceLearntUnlessKept) {
  Inputs<> in(small(), 150, 1);
  KVCache<float, 2> cache(small());
  feed(cache, in);
  EXPECT_THROW(cache.statistics(), Error);
  EXPECT_EQ(cache.memory_report().statistics, 0u);
}

TEST(BasisPerSequence, LearnsFromItsOwnTokensAlone) {
  Options options = small();
  options.learning = LearningMode::per_sequence;
  Inputs<> first(options, 300, 1), second(options, 300, 2);
  KVCache<float, 2> shared(options), alone(options);
  const SequenceId other = feed(shared, first);
  const SequenceId sequence = feed(shared, second);
  EXPECT_EQ(contents(shared, sequence), contents(alone, feed(alone, second)));
  const std::size_t both = shared.memory_report().bases;
  shared.remove_sequence(other);
  EXPECT_LT(shared.memory_report().bases, both);
  EXPECT_EQ(contents(shared, feed(shared, second)), contents(shared, sequence));
}

}  // namespace
}  // namespace squat::test::prior_test
