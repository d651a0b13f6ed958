// Snapshots and priors that were altered, byte by byte and section by section with checksums that fit
// again: each is refused, or is one that a cache might have written, which then holds what it says. None
// crashes, hangs or takes memory that it does not have. SQUAT_LONG_TESTS=1: a million snapshots, 100,000
// priors. SQUAT_SEED=N: others than those of 0.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "allocation/counting_allocator.hpp"
#include "memory_cap.hpp"
#include "mutations.hpp"
#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"
#include "what_it_says.hpp"

namespace squat::test::mutation_test {
namespace {

/// A hundredth of the long form.
int mutations(int of_long_form) {
  const char *long_tests = std::getenv("SQUAT_LONG_TESTS");
  return long_tests != nullptr && *long_tests == '1' ? of_long_form : of_long_form / 100;
}

/// Of the first of a test's mutants.
unsigned first_seed() {
  const char *seed = std::getenv("SQUAT_SEED");
  return seed == nullptr ? 0 : 1000 * static_cast<unsigned>(std::atoi(seed));
}

Options options_of(Coding coding, Codes codes = Codes::scalar,
                   Allocation allocation = Allocation::head) {
  Options options{.layers = 1, .query_heads = 2, .kv_heads = 2, .head_dim = 16, .coding = coding};
  if (codes == Codes::trellis) options.head_dim = 32;
  options.codes = codes;
  options.allocation = allocation;
  options.sinks = 2;
  options.residual = 5;
  options.page_tokens = codes == Codes::trellis ? 32 : 16;
  options.statistics_tokens = 40;
  options.rotary = {rotary_table(1e3, 12)};
  options.tile_tokens = 32;
  return options;
}

template <class Cache>
Bytes snapshot_of(const Options &options, Index tokens) {
  Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, tokens, 3);
  fill(cache, sequence, in, 0, tokens);
  cache.shift(sequence, 5, 9, -4);
  return saved(cache, sequence);
}

/// Goes on with what was loaded; what is saved of it is loaded as the same.
template <class Cache>
void go_on(Cache &cache, SequenceId sequence) {
  Inputs<> in(cache.options(), 40, 9);
  for (int layer = 0; layer < cache.options().layers; ++layer) contents(cache, sequence, layer);
  fill(cache, sequence, in, 0, 40);
  Cache other(cache.options());
  const Bytes again = saved(cache, sequence);
  EXPECT_TRUE(saved(other, other.load(again)) == again);
}

struct Verdicts {
  int refused = 0, accepted = 0;
};

/// count: of mutants, every fourth without checksums that fit.
template <class Cache>
Verdicts mutate(const Options &options, Index tokens, int count, unsigned seed) {
  const Bytes bytes = snapshot_of<Cache>(options, tokens);
  Mutations mutations(seed);
  Verdicts verdicts;
  for (int i = 0; i < count; ++i) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", mutant " << i);
    Bytes mutant = bytes;
    const bool sections = i % 2 == 0, repaired = i % 4 != 1;
    if (sections) mutations.change_sections(mutant);
    if (!sections) mutations.change_bytes(mutant);
    if (repaired && !sections) repair(mutant);
    if (mutant.size() >= bytes.size() && std::equal(bytes.begin(), bytes.end(), mutant.begin()))
      continue;
    Cache cache(options);
    const MemoryReport before = cache.memory_report();
    SequenceId loaded;
    try {
      const MemoryCap cap;
      loaded = cache.load(mutant);
    } catch (const Error &) {
      ++verdicts.refused;
      EXPECT_EQ(cache.memory_report().total(), before.total());
      continue;
    }
    ++verdicts.accepted;
    EXPECT_TRUE(repaired);
    EXPECT_TRUE(what_it_says(saved(cache, loaded)) == what_it_says(mutant));
    EXPECT_NO_THROW(go_on(cache, loaded));
    if (testing::Test::HasFailure()) break;
  }
  return verdicts;
}

TEST(Mutation, OfASnapshotIsRefusedOrIsWhatItSays) {
  Verdicts all;
  unsigned seed = first_seed();
  const auto add = [&]<class Cache>(const Options &options) {
    for (const Index tokens : {Index{20}, Index{110}}) {
      const Verdicts verdicts = mutate<Cache>(options, tokens, mutations(1'000'000) / 16, ++seed);
      all.refused += verdicts.refused;
      all.accepted += verdicts.accepted;
    }
  };
  const auto add_of_two_bits = [&](const Options &options) {
    add.template operator()<KVCache<half, 2>>(options);
  };
  add_of_two_bits(options_of(Coding::plain));
  add_of_two_bits(options_of(Coding::orthogonal));
  add_of_two_bits(options_of(Coding::subspace));
  add_of_two_bits(options_of(Coding::subspace, Codes::trellis, Allocation::layer));
  add_of_two_bits(options_of(Coding::subspace, Codes::scalar, Allocation::model));
  Options two_layers = options_of(Coding::subspace);
  two_layers.layers = 2;
  two_layers.learning = LearningMode::per_sequence;
  add_of_two_bits(two_layers);
  add.template operator()<KVCache<bfloat16, 8, 16>>(options_of(Coding::plain));
  add.template operator()<KVCache<float, 4, 3>>(options_of(Coding::subspace));
  std::printf("%d refused, %d accepted\n", all.refused, all.accepted);
  EXPECT_GT(all.refused, mutations(1'000'000) / 4);
  EXPECT_GT(all.accepted, mutations(1'000'000) / 50);  // codes and numbers that another might have
}

TEST(Mutation, OfCodingsIsRefusedOrIsWhatItSays) {
  const Options options = options_of(Coding::subspace);
  using Cache = KVCache<half, 2>;
  Cache learnt(options);
  Inputs<> in(options, 60, 3);
  fill(learnt, learnt.add_sequence(), in, 0, 60);
  Bytes bytes;
  learnt.save_codings(bytes);
  Mutations mutate(first_seed() + 3);
  for (int i = 0; i < mutations(100'000); ++i) {
    SCOPED_TRACE(testing::Message() << "mutant " << i);
    Bytes mutant = bytes, again;
    i % 2 == 0 ? mutate.change_sections(mutant) : mutate.change_bytes(mutant);
    if (i % 4 == 3) repair(mutant);
    if (mutant.size() >= bytes.size() && std::equal(bytes.begin(), bytes.end(), mutant.begin()))
      continue;
    Cache cache(options);
    try {
      const MemoryCap cap;
      cache.load_codings(mutant);
    } catch (const Error &) {
      continue;
    }
    cache.save_codings(again);
    EXPECT_NE(i % 4, 1);
    EXPECT_TRUE(what_it_says(again, true) == what_it_says(mutant, true));
    if (HasFailure()) break;
  }
}

/// FNV-1a over what comes before it, which is how a prior ends.
void repair_prior(Bytes &bytes) {
  if (bytes.size() < 8) return;
  std::uint64_t sum = 14695981039346656037u;
  for (std::size_t i = 0; i + 8 < bytes.size(); ++i)
    sum = (sum ^ static_cast<std::uint64_t>(bytes[i])) * 1099511628211u;
  std::memcpy(bytes.data() + bytes.size() - 8, &sum, sizeof sum);
}

TEST(Mutation, OfAPriorIsRefusedOrIsWhatItSays) {
  Options options = options_of(Coding::subspace);
  options.keep_statistics = true;
  KVCache<half, 2> cache(options);
  Inputs<> in(options, 60, 3);
  fill(cache, cache.add_sequence(), in, 0, 60);
  std::stringstream file;
  cache.statistics().save(file);
  const std::string text = file.str();
  Mutations mutate(first_seed() + 2);
  int accepted = 0;
  for (int i = 0; i < mutations(100'000); ++i) {
    SCOPED_TRACE(testing::Message() << "mutant " << i);
    Bytes mutant(text.size());
    std::memcpy(mutant.data(), text.data(), text.size());
    mutate.change_bytes(mutant);
    if (i % 2 == 0) repair_prior(mutant);
    std::string altered(reinterpret_cast<const char *>(mutant.data()), mutant.size());
    if (altered.starts_with(text)) continue;
    std::istringstream from(altered);
    try {
      const MemoryCap cap;
      const Prior prior = Prior::load(from);
      ++accepted;
      EXPECT_EQ(i % 2, 0);
      std::stringstream again;
      prior.save(again);
      EXPECT_EQ(again.str(), altered);
      if (prior.head_dim() != options.head_dim || prior.rows() != 32) continue;
      // A cache that begins with it refuses it, or packs.
      Options with_prior = options;
      with_prior.prior = std::make_shared<const Prior>(prior);
      KVCache<half, 2> other(with_prior);
      if (i % 8 == 0) fill(other, other.add_sequence(), in, 0, 60);
    } catch (const Error &) {
    }
    if (HasFailure()) break;
  }
  EXPECT_GT(accepted, mutations(100'000) / 50);
}

}  // namespace
}  // namespace squat::test::mutation_test
