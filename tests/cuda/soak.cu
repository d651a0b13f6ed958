// A serving pattern on the device.
//
// usage: cuda_soak [SECONDS [SECONDS BETWEEN SAMPLES [FILE.csv]]]

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "caches.cuh"
#include "reliability/soak.hpp"

namespace {

struct OnGpu {
  using Cache = squat::test::DeviceCache<64, 32, 2, 2>;
  using Copy = squat::test::DeviceTensorCopy<>;

  static squat::Options options(squat::Options options) { return options; }
  static void settle(const Cache &cache) { cache.check(); }
  /// Of this process, as the driver's nvidia-smi counts it; of all where it does not tell them apart.
  static double device_mib() {
    const std::unique_ptr<FILE, int (*)(FILE *)> lines(
        popen("nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits", "r"),
        pclose);
    int process = 0;
    double mib = 0;
    while (lines && std::fscanf(lines.get(), "%d, %lf", &process, &mib) == 2) {
      if (process == getpid()) return mib;
    }
    std::size_t free = 0, all = 0;
    squat::test::require(cudaMemGetInfo(&free, &all));
    return static_cast<double>(all - free) / (1 << 20);
  }
};

}  // namespace

int soak_on_gpu(int count, char **arguments) {
  if (!squat::test::has_device()) return 77;
  const double seconds = count > 1 ? std::atof(arguments[1]) : 3;
  const double every = count > 2 ? std::atof(arguments[2]) : seconds / 60;
  return squat::test::soak<OnGpu>(seconds, every, count > 3 ? arguments[3] : "") ? 0 : 1;
}
