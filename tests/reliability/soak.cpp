// A serving pattern on the CPU.
//
// usage: soak [SECONDS [SECONDS BETWEEN SAMPLES [FILE.csv]]]

#include "soak.hpp"

#include <cstdlib>

namespace {

struct OnCpu {
  using Cache = squat::KVCache<squat::half, 2>;

  class Copy {
   public:
    explicit Copy(const squat::test::Tensor<float> &tensor) : tensor_(tensor) {}
    squat::TensorView<float> view(squat::Index first, squat::Index count) {
      return tensor_.view(first, count);
    }

   private:
    squat::test::Tensor<float> tensor_;
  };

  static squat::Options options(squat::Options options) { return options; }
  static void settle(const Cache &) {}
  static double device_mib() { return 0; }
};

}  // namespace

int main(int count, char **arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 3;
  const double every = count > 2 ? std::atof(arguments[2]) : seconds / 60;
  return squat::test::soak<OnCpu>(seconds, every, count > 3 ? arguments[3] : "") ? 0 : 1;
}
