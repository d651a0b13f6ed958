// Snapshots and priors that were altered, byte-wise and with checksums that fit again: each is refused,
// or is one that a cache can go on with. None crashes, hangs or takes memory that it does not have.
// SQUAT_LONG_TESTS=1: a million of them.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "reference/inputs.hpp"
#include "reference/reference_attention.hpp"
#include "reference/saved.hpp"
#include "reference/snapshot_sections.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define SQUAT_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SQUAT_TEST_SANITIZED
#endif
#endif

namespace squat::test {
namespace {

using Cache = KVCache<half, 2>;

int mutations() {
  const char *long_tests = std::getenv("SQUAT_LONG_TESTS");
  return long_tests != nullptr && *long_tests == '1' ? 1'000'000 : 20'000;
}

/// No more than 512 MiB of new memory while it lives. Sanitizers, which reserve terabytes, have limits
/// of their own.
class MemoryCap {
 public:
  MemoryCap() {
#if !defined(SQUAT_TEST_SANITIZED)
    getrlimit(RLIMIT_DATA, &before_);
    rlimit capped = before_;
    capped.rlim_cur = std::min<rlim_t>(before_.rlim_cur, rlim_t{512} << 20);
    setrlimit(RLIMIT_DATA, &capped);
#endif
  }
  ~MemoryCap() {
#if !defined(SQUAT_TEST_SANITIZED)
    setrlimit(RLIMIT_DATA, &before_);
#endif
  }
  MemoryCap(const MemoryCap &) = delete;
  MemoryCap &operator=(const MemoryCap &) = delete;

 private:
  [[maybe_unused]] rlimit before_{};
};

Options options_of(Coding coding, Codes codes, Allocation allocation) {
  Options options{.layers = 1, .query_heads = 2, .kv_heads = 2, .head_dim = 32, .coding = coding};
  options.codes = codes;
  options.allocation = allocation;
  options.sinks = 2;
  options.residual = 5;
  options.page_tokens = 32;
  options.statistics_tokens = 40;
  options.rotary = {rotary_table(1e3, 24)};
  return options;
}

Bytes snapshot_of(const Options &options, Index tokens) {
  Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, tokens, 3);
  cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  cache.shift(sequence, 5, 9, -4);
  return saved(cache, sequence);
}

/// Changes some bytes, or numbers of 1 to 8 bytes to those that readers like least, or cuts, doubles or
/// swaps a stretch.
void mutate(Bytes &bytes, std::mt19937 &random) {
  const auto below = [&](std::size_t most) {
    return std::size_t{random()} % std::max<std::size_t>(most, 1);
  };
  const std::size_t changes = 1 + below(3);
  for (std::size_t change = 0; change < changes && !bytes.empty(); ++change) {
    const std::size_t at = below(bytes.size()), length = std::min(below(16), bytes.size() - at);
    constexpr std::uint64_t awkward[] = {0,
                                         1,
                                         0x7f,
                                         0x80,
                                         0xff,
                                         0x7fff,
                                         0x8000,
                                         0x7f800000,
                                         0x7fc00000,
                                         0x7fffffff,
                                         0x80000000,
                                         0xffffffff,
                                         0x7ff0000000000000,
                                         0x8000000000000000,
                                         0xffffffffffffffff,
                                         0x7e007e007e007e00};
    const std::uint64_t number = awkward[below(std::size(awkward))];
    const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(6)) {
      case 0:
        bytes[at] ^= std::byte{static_cast<unsigned char>(1u << below(8))};
        break;
      case 1:
        bytes[at] = std::byte{static_cast<unsigned char>(random())};
        break;
      case 2:
      case 3:
        std::memcpy(bytes.data() + at, &number,
                    std::min<std::size_t>(std::size_t{1} << below(4), bytes.size() - at));
        break;
      case 4:
        if (below(8) == 0) bytes.erase(first, first + static_cast<std::ptrdiff_t>(length));
        break;
      default:
        if (below(8) == 0) bytes.insert(first, length, bytes[at]);
    }
  }
}

/// Goes on with what was loaded, and with what is saved then.
void go_on(Cache &cache, SequenceId sequence) {
  Inputs<> in(cache.options(), 40, 9);
  contents(cache, sequence);
  cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  Bytes again, once_more;
  cache.save(sequence, again);
  Cache other(cache.options());
  other.save(other.load(again), once_more);
  EXPECT_TRUE(again == once_more);
}

TEST(Mutation, OfASnapshotIsRefusedOrGoesOn) {
  std::mt19937 random(1);
  const MemoryCap cap;
  int refused = 0, accepted = 0;
  const std::vector<Options> all = {options_of(Coding::plain, Codes::scalar, Allocation::head),
                                    options_of(Coding::orthogonal, Codes::scalar, Allocation::head),
                                    options_of(Coding::subspace, Codes::scalar, Allocation::head),
                                    options_of(Coding::subspace, Codes::trellis, Allocation::layer),
                                    options_of(Coding::subspace, Codes::scalar, Allocation::model)};
  for (const Options &options : all) {
    for (const Index tokens : {Index{30}, Index{150}}) {
      const Bytes bytes = snapshot_of(options, tokens);
      for (int i = 0; i < mutations() / 10; ++i) {
        Bytes mutated = bytes;
        mutate(mutated, random);
        const bool repaired = i % 4 != 0;
        if (repaired) repair(mutated);
        if (mutated.size() >= bytes.size() && std::equal(bytes.begin(), bytes.end(), mutated.begin()))
          continue;
        Cache cache(options);
        const MemoryReport before = cache.memory_report();
        SequenceId loaded;
        try {
          loaded = cache.load(mutated);
        } catch (const Error &) {
          ++refused;
          EXPECT_EQ(cache.memory_report().total(), before.total()) << "seed 1, mutation " << i;
          continue;
        }
        ++accepted;
        EXPECT_TRUE(repaired) << "seed 1, mutation " << i;
        EXPECT_NO_THROW(go_on(cache, loaded)) << "seed 1, mutation " << i;
      }
    }
  }
  EXPECT_GT(refused, mutations() / 4);
  EXPECT_GT(accepted, mutations() / 20);  // codes and numbers that another cache might have had
}

TEST(Mutation, OfAPriorIsRefused) {
  Options options = options_of(Coding::subspace, Codes::scalar, Allocation::head);
  options.keep_statistics = true;
  Cache cache(options);
  const SequenceId sequence = cache.add_sequence();
  Inputs<> in(options, 60, 3);
  cache.attend(sequence, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view());
  std::stringstream file;
  cache.statistics().save(file);
  const std::string text = file.str();
  std::mt19937 random(2);
  const MemoryCap cap;
  for (int i = 0; i < mutations() / 10; ++i) {
    Bytes mutated(text.size());
    std::memcpy(mutated.data(), text.data(), text.size());
    mutate(mutated, random);
    if (std::memcmp(mutated.data(), text.data(), std::min(mutated.size(), text.size())) == 0) continue;
    std::istringstream in_file(
        std::string(reinterpret_cast<const char *>(mutated.data()), mutated.size()));
    EXPECT_THROW(Prior::load(in_file), Error) << "seed 2, mutation " << i;
  }
}

}  // namespace
}  // namespace squat::test
