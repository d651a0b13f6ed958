// Random operations on the CPU. SQUAT_LONG_TESTS=1: 100,000 of them; SQUAT_SEED=N: the run of that seed.

#include "allocation/counting_allocator.hpp"
#include "random_suite.hpp"

namespace squat::test::random_operations_test {
namespace {

struct OnCpu {
  template <class T, int KeyBits, int ValueBits>
  using Cache = KVCache<T, KeyBits, ValueBits>;

  class Copy {
   public:
    explicit Copy(const Tensor<float> &tensor) : tensor_(tensor) {}
    TensorView<float> view() { return tensor_.view(); }
    TensorView<float> view(Index first, Index count) { return tensor_.view(first, count); }
    const Tensor<float> &read() const { return tensor_; }

   private:
    Tensor<float> tensor_;
  };

  template <class AnyCache>
  static void dequantize(AnyCache &cache, SequenceId sequence, int layer, Tensor<float> &k,
                         Tensor<float> &v) {
    cache.dequantize(sequence, layer, k.view(), v.view());
  }

  /// Tasks run from the last to the first.
  static void restrict(Options &options) {
    options.parallel = [](int count, Task task) {
      if (parallel_fails_at > 0 && --parallel_fails_at == 0) throw Error("squat: no threads");
      for (int index = count; index-- > 0;) task(index);
    };
  }
  static double tolerance(int bits) { return rounding_tolerance(bits); }
  static constexpr double turned = 2e-4;
  static bool fail(int at) {
    const bool failed = (armed > 0 && fails_at == 0) || (armed < 0 && parallel_fails_at == 0);
    armed = at;
    fails_at = static_cast<std::size_t>(std::max(at, 0));
    parallel_fails_at = std::max(-at, 0);
    return failed;
  }
  template <class AnyCache>
  static void settle(AnyCache &) {}

  static inline int armed = 0, parallel_fails_at = 0;
};

template <class T, int KeyBits, int ValueBits>
void run(unsigned seed, int operations, const char *types) {
  SCOPED_TRACE(testing::Message() << "SQUAT_SEED=" << seed);
  expect_holds<OnCpu, T, KeyBits, ValueBits>(draw(seed, operations, KeyBits, ValueBits), types);
}

/// Of each width and element type in turn.
void run(unsigned seed, int operations) {
  switch (seed % 6) {
    case 0:
      return run<half, 2, 2>(seed, operations, "OnCpu, half, 2, 2");
    case 1:
      return run<half, 4, 2>(seed, operations, "OnCpu, half, 4, 2");
    case 2:
      return run<float, 16, 16>(seed, operations, "OnCpu, float, 16, 16");
    case 3:
      return run<bfloat16, 3, 4>(seed, operations, "OnCpu, bfloat16, 3, 4");
    case 4:
      return run<half, 8, 16>(seed, operations, "OnCpu, half, 8, 16");
    default:
      return run<half, 2, 3>(seed, operations, "OnCpu, half, 2, 3");
  }
}

TEST(RandomOperations, AreThoseOfTheModel) {
  if (const int seed = number_of("SQUAT_SEED", 0); seed > 0) return run(static_cast<unsigned>(seed), 60);
  const int runs = number_of("SQUAT_LONG_TESTS", 0) == 1 ? 1670 : 34;
  std::printf("%d runs of 60 operations, seeds 1 to %d\n", runs, runs);
  for (int seed = 1; seed <= runs && !testing::Test::HasFailure(); ++seed)
    run(static_cast<unsigned>(seed), 60);
}

}  // namespace
}  // namespace squat::test::random_operations_test
