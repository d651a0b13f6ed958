// Random operations on the device. SQUAT_LONG_TESTS=1: 5,000 of them; SQUAT_SEED=N: the run of that
// seed.

#include "caches.cuh"
#include "reliability/random_suite.hpp"

namespace squat::test {
namespace {

/// See CheckedCache.
struct OnGpu {
  static constexpr int head_dim = 64, page_tokens = 32;

  template <class T, int KeyBits, int ValueBits>
  using Cache = DeviceCache<head_dim, page_tokens, KeyBits, ValueBits, T>;
  using Copy = DeviceTensorCopy<>;

  template <class AnyCache>
  static void dequantize(AnyCache &cache, SequenceId sequence, int layer, Tensor<float> &k,
                         Tensor<float> &v) {
    DeviceTensorCopy<> to_k(k), to_v(v);
    cache.dequantize(sequence, layer, to_k.view(), to_v.view());
    k = to_k.read();
    v = to_v.read();
  }

  /// To what there are kernels for.
  static void restrict(Options &options) {
    options.head_dim = options.head_dim % 16 == 0 ? head_dim : head_dim - 12;
    options.page_tokens = page_tokens;
    options.codes.reset();
    options.allocation.reset();
    for (RotaryTable &table : options.rotary) table = rotary_table(1e4, options.head_dim, table.pairs);
  }

  static double tolerance(int) { return 3 * device_tolerance; }
  static constexpr double turned = 3e-3;
  static bool fail(int at) {
    const bool failed = armed > 0 && refused_at == 0;
    armed = at;
    refused_at = std::max(at, 0);
    return failed;
  }
  template <class AnyCache>
  static void settle(AnyCache &cache) {
    cache.check();
  }

  static inline int armed = 0, refused_at = 0;
  static bool refuse(std::size_t) { return refused_at > 0 && --refused_at == 0; }
};

class CudaRandomOperations : public OnDevice {
 protected:
  void SetUp() override {
    OnDevice::SetUp();
    cuda::refuses_device_memory = OnGpu::refuse;
  }
  void TearDown() override { cuda::refuses_device_memory = nullptr; }

  template <int KeyBits, int ValueBits>
  static void run(unsigned seed, const char *types) {
    SCOPED_TRACE(testing::Message() << "SQUAT_SEED=" << seed);
    expect_holds<OnGpu, half, KeyBits, ValueBits>(draw(seed, 50, KeyBits, ValueBits), types);
  }

  /// Of each width in turn.
  static void run(unsigned seed) {
    switch (seed % 3) {
      case 0:
        return run<2, 2>(seed, "OnGpu, half, 2, 2");
      case 1:
        return run<3, 4>(seed, "OnGpu, half, 3, 4");
      default:
        return run<16, 16>(seed, "OnGpu, half, 16, 16");
    }
  }
};

TEST_F(CudaRandomOperations, AreThoseOfTheModel) {
  if (const int seed = number_of("SQUAT_SEED", 0); seed > 0) return run(static_cast<unsigned>(seed));
  const int runs = number_of("SQUAT_LONG_TESTS", 0) == 1 ? 100 : 10;
  for (int seed = 1; seed <= runs && !HasFailure(); ++seed) run(static_cast<unsigned>(seed));
}

}  // namespace
}  // namespace squat::test
