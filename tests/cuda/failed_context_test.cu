// A kernel that faults takes the device's context with it: every call from then on says so, and nothing
// hangs or throws where it must not.

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "caches.cuh"
#include "reference/inputs.hpp"
#include "reference/saved.hpp"

namespace squat::test {
namespace {

__global__ void write_to_nowhere(int *nowhere) { *nowhere = 1; }

/// Ends the process: with 0 where all calls say that the cache is not usable, each with its place.
[[noreturn]] void break_the_context() {
  Options options{.layers = 1,
                  .query_heads = 4,
                  .kv_heads = 2,
                  .head_dim = 64,
                  .residual = 16,
                  .page_tokens = 32,
                  .statistics_tokens = 60};
  options.rotary = {rotary_table(1e4, 64)};
  options.learning = LearningMode::per_sequence;
  options.keep_statistics = true;
  int silent = 0;
  {
    auto cache = std::make_unique<DeviceCache<64, 32, 2, 2>>(options);
    const SequenceId a = cache->add_sequence(), b = cache->add_sequence();
    DeviceInputs in(options, 150, 1);
    for (const SequenceId sequence : {a, b})
      cache->append(sequence, 0, in.q.view(), in.k.view(), in.v.view());
    const Bytes bytes = saved(*cache, a);
    DeviceTensorCopy<> rows(Tensor<float>(cache->length(a), options.kv_heads, options.head_dim));
    write_to_nowhere<<<1, 1>>>(nullptr);
    (void)cudaDeviceSynchronize();  // so that the first call meets it, too
    const std::array<SequenceId, 2> sequences = {a, b}, parents = {b, b};
    const std::vector<std::pair<const char *, std::function<void()>>> calls = {
        {"dequantize", [&] { cache->dequantize(a, 0, rows.view(), rows.view()); }},
        {"attend", [&] { cache->attend(a, 0, in.q.view(), in.k.view(), in.v.view(), in.out.view()); }},
        {"a step",
         [&] {
           cache->attend(a, 0, in.q.view(0, 1), in.k.view(0, 1), in.v.view(0, 1), in.out.view(0, 1));
         }},
        {"reading", [&] { cache->attend(a, 0, in.q.view(0, 1), in.out.view(0, 1)); }},
        {"append", [&] { cache->append(a, 0, in.k.view(), in.v.view()); }},
        {"add_sequence", [&] { cache->add_sequence(); }},
        {"fork", [&] { cache->fork(a, 140); }},
        {"reorder", [&] { cache->reorder(sequences, parents); }},
        {"truncate", [&] { cache->truncate(a, 100); }},
        {"shift", [&] { cache->shift(a, 10, 20, -10); }},
        {"save", [&] { saved(*cache, a); }},
        {"load", [&] { cache->load(bytes); }},
        {"statistics", [&] { cache->statistics(); }},
        {"check", [&] { cache->check(); }},
    };
    for (const auto &[name, call] : calls) {
      try {
        call();
        std::fprintf(stderr, "%s: no error\n", name);
        ++silent;
      } catch (const Error &error) {
        const std::string text = error.what();
        const bool says = text.find("the cache is not usable any more") != std::string::npos;
        if (!says) std::fprintf(stderr, "%s: %s\n", name, error.what());
        silent += !says;
      } catch (const std::exception &error) {
        std::fprintf(stderr, "%s: not an Error: %s\n", name, error.what());
        ++silent;
      }
    }
    cache->remove_sequence(a);
    (void)cache->memory_report();
  }
  std::_Exit(silent);
}

class FailedContext : public OnDevice {};

TEST_F(FailedContext, IsSaidByEveryCall) {
  // In a process of its own: the context is gone for good.
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  EXPECT_EXIT(break_the_context(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace squat::test
